//! What cannot be is refused with field and value, and changes nothing.

mod fields;
mod processes;
