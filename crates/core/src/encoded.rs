//! Decodes rclone's configuration as an environment variable carries it.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::inventory::Failure;

/// The environment variable of the server that may hold it.
pub const VARIABLE: &str = "RCLONE_CONF_BASE64";

/// Padding is often lost where a value is copied by hand.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The text that `value` stands for. Line breaks in it do not count: `base64` wraps lines.
///
/// # Errors
///
/// That it is none. The value is a secret, and so no part of it is repeated.
pub fn decode(value: &str) -> Result<String, Failure> {
    let value: String = value.split_ascii_whitespace().collect();
    let text = LENIENT.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.filter(|text| !text.trim().is_empty()).ok_or_else(|| Failure {
        message: format!("{VARIABLE} is not the base64 form of a text"),
        hint: "Set it in the server's environment to the output of \"base64 -w0 rclone.conf\" and \
               restart the server."
            .to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_base64_prints() {
        for value in
            ["W3JdCnR5cGUgPSBsb2NhbAo=", "W3JdCnR5cGUgPSBsb2NhbAo", " W3JdCnR5cGUg\nPSBsb2NhbAo=\n"]
        {
            assert_eq!(decode(value).as_deref(), Ok("[r]\ntype = local\n"), "{value}");
        }
    }

    #[test]
    fn refuses_the_rest_without_repeating_it() {
        for value in ["[remote]", "W3JdC§", "////", "Cg==", "geheim"] {
            let failure = decode(value).expect_err(value);
            assert!(!format!("{failure:?}").contains(value), "{failure:?}");
        }
    }
}
