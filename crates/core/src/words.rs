//! Shortens what programs and people say, so that it can be kept and shown.

/// How much of a program's last words is repeated: bytes, and lines.
const LAST_WORDS: usize = 1000;
const LAST_LINES: usize = 5;

/// The end of what a program printed, on one line.
pub fn last_words(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    let words = lines[lines.len().saturating_sub(LAST_LINES)..].join("; ");
    let mut begin = words.len().saturating_sub(LAST_WORDS);
    while !words.is_char_boundary(begin) {
        begin += 1;
    }
    words[begin..].to_string()
}

/// A text on one line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The beginning of a text, at most `limit` bytes and an ellipsis where something is left out.
pub fn beginning(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let mut end = limit;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_the_last_lines_on_one() {
        assert_eq!(last_words(""), "");
        assert_eq!(last_words("\n  one\n\ntwo \n"), "one; two");
        assert_eq!(last_words("1\n2\n3\n4\n5\n6\n"), "2; 3; 4; 5; 6");
        let long = last_words(&"ö".repeat(2000));
        assert_eq!((long.len(), long.chars().all(|c| c == 'ö')), (LAST_WORDS, true));
        assert_eq!(last_words(&format!("x{}", "ö".repeat(500))).len(), LAST_WORDS);
        assert_eq!(last_words(&format!("{}x", "ö".repeat(500))).len(), LAST_WORDS - 1);
    }

    #[test]
    fn beginnings_end_between_characters() {
        assert_eq!(beginning("words".to_string(), 5), "words");
        assert_eq!(beginning("words".to_string(), 4), "word…");
        assert_eq!(beginning("öö".to_string(), 3), "ö…");
        assert_eq!(beginning("öö".to_string(), 1), "…");
    }
}
