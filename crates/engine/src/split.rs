//! Decides what of a component is compiled, and what its instances begin with.
//!
//! | component | compiled | memory from |
//! | --- | --- | --- |
//! | instances can be rewound, or there is much data | the component without its data | our pool |
//! | the same, and much code | its code, which others may have as well ([`crate::code`]) | our pool |
//! | others, and whatever is debugged | the component | Wasmtime's pool |

use std::{borrow::Cow, sync::Arc};

use wasmparser::{Parser, Payload};

use crate::{
    Digest, Error, Flavor,
    code::{self, Beginning, Code, LEAST_SHARED_BYTES},
    memory::snapshot::{self, Contents, Extracted, LARGE_CONTENTS_BYTES},
    normalize::{self, Normalized},
    rewind::{self, InitialValues},
    threads,
};

/// The section of a core module with the lines of its source.
const DEBUG_LINES: &str = ".debug_line";

/// A component, taken apart.
pub(crate) struct Split {
    /// The flavor of the engine that what is compiled is for.
    pub(crate) flavor: Flavor,
    /// What is compiled.
    pub(crate) component: Arc<Vec<u8>>,
    /// Whether that takes noticeable time.
    pub(crate) is_large: bool,
    /// Whether it says which instruction is of which line of its source.
    pub(crate) has_lines: bool,
    /// What its memory begins with, if that was taken out.
    pub(crate) contents: Option<Contents>,
    /// Whether its instances can be rewound.
    pub(crate) can_rewind: bool,
    /// If others may have the same code: what that is found by, and what this component
    /// begins with.
    pub(crate) shared: Option<(Digest, Arc<Beginning>)>,
}

impl Split {
    /// Takes a source apart.
    ///
    /// # Errors
    /// By the step that failed: not WebAssembly, invalid, cannot be adapted.
    pub(crate) fn of(source: Arc<Vec<u8>>, is_debugged: bool) -> Result<Self, Error> {
        let Normalized { component, flavor } = normalize::normalize(&source)?;
        let component = match component {
            Cow::Owned(component) => {
                // Others need its memory.
                drop(source);
                Arc::new(component)
            }
            Cow::Borrowed(_) => source,
        };
        let has_lines = has_lines(&component)?;
        // Debug information says where each byte of code is.
        let extracted = if is_debugged { None } else { snapshot::extract(&component)? };
        if let Some(extracted) = extracted
            && let Some(split) = Self::without_contents(extracted, flavor.with_snapshot(), has_lines)?
        {
            return Ok(split);
        }
        let is_large = component.len() >= LEAST_SHARED_BYTES;
        Ok(Self { flavor, component, is_large, has_lines, contents: None, can_rewind: false, shared: None })
    }

    /// `None` if nothing is gained by the memory's contents being apart.
    fn without_contents(
        extracted: Extracted,
        flavor: Flavor,
        has_lines: bool,
    ) -> Result<Option<Self>, Error> {
        let Extracted { component, contents, data_bytes } = extracted;
        let has_much_data = data_bytes >= LARGE_CONTENTS_BYTES;
        let is_large = component.len() >= LEAST_SHARED_BYTES;
        let split = |component, can_rewind, shared| Self {
            flavor,
            component: Arc::new(component),
            is_large,
            has_lines,
            contents: Some(contents),
            can_rewind,
            shared,
        };
        if !is_large {
            let rewound = rewind::prepare(&component, InitialValues::InCode)?;
            return Ok(match rewound {
                Some(component) => Some(split(component, true, None)),
                None => has_much_data.then(|| split(component, false, None)),
            });
        }
        for values in [InitialValues::InMemory, InitialValues::InCode] {
            let takes_variables = values == InitialValues::InMemory;
            let Some(Code { component, beginning }) = code::separate(&component, takes_variables)? else {
                continue;
            };
            let (digest, rewound) =
                threads::both(|| Digest::of(&component), || rewind::prepare(&component, values));
            let shared = Some((digest, Arc::new(beginning)));
            if let Some(component) = rewound? {
                return Ok(Some(split(component, true, shared)));
            }
            // Nobody would put values of variables into an instance that is not rewound.
            if has_much_data && values == InitialValues::InCode {
                return Ok(Some(split(component, false, shared)));
            }
        }
        Ok(None)
    }
}

fn has_lines(component: &[u8]) -> Result<bool, Error> {
    for payload in Parser::new(0).parse_all(component) {
        if let Payload::CustomSection(section) = payload.map_err(normalize::invalid)?
            && section.name() == DEBUG_LINES
        {
            return Ok(true);
        }
    }
    Ok(false)
}
