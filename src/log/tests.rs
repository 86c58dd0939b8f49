//! The log on a disk that crashes, tears, lies and fills up.

mod support;

mod basics;
mod beside;
mod damage;
mod faults;
mod full;
mod model;
mod refused;
mod repair;
