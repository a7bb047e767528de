//! Tests the machine in a made-up world: by stories, and by whatever may happen in any order.

mod properties;
mod stories;
pub(crate) mod world;
