//! The developer's loop: new, build, watch, test, doctor, inspect.
#![forbid(unsafe_code)]
