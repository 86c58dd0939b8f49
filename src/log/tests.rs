//! The log on a disk that crashes, tears, lies and fills up.

mod support;

mod basics;
