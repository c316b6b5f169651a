//! What cannot be is refused with field and value, and changes nothing.

mod claims;
mod fields;
mod processes;
