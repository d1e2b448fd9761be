//! Decides what of a component is compiled, and what its instances begin with.
//!
//! | component | compiled | memory from |
//! | --- | --- | --- |
//! | instances can be rewound, or there is much data | the component without its data | our pool |
//! | the same, and much code | its code, which others may have as well ([`crate::code`]) | our pool |
//! | others, and whatever is debugged | the component | Wasmtime's pool |

use std::{borrow::Cow, sync::Arc};

use crate::{
    Digest, Error, Flavor,
    code::{self, Beginning, Code, LEAST_SHARED_BYTES},
    memory::snapshot::{self, Contents, Extracted, LARGE_CONTENTS_BYTES},
    normalize::{self, Normalized},
    rewind::{self, InitialValues},
};

/// A component and its parts.
pub(crate) struct Split {
    /// The flavor of the component as a whole.
    pub(crate) flavor: Flavor,
    component: Vec<u8>,
    /// The component without its memory's contents.
    extracted: Option<Extracted>,
}

/// Code that a component may have in common with others.
pub(crate) struct Candidate {
    pub(crate) digest: Digest,
    pub(crate) beginning: Arc<Beginning>,
    component: Vec<u8>,
    values: InitialValues,
}

/// What came of a component.
pub(crate) struct Compiled {
    pub(crate) flavor: Flavor,
    /// Native code.
    pub(crate) code: Vec<u8>,
    pub(crate) contents: Option<Contents>,
    pub(crate) can_rewind: bool,
    /// What the code is found by that others may have as well, and what this component
    /// begins with.
    pub(crate) shared: Option<(Digest, Arc<Beginning>)>,
}

impl Split {
    /// Takes a source apart.
    ///
    /// # Errors
    /// By the step that failed: not WebAssembly, invalid, cannot be adapted.
    pub(crate) fn of(source: Vec<u8>, is_debugged: bool) -> Result<Self, Error> {
        let Normalized { component, flavor } = normalize::normalize(&source)?;
        let component = match component {
            Cow::Owned(component) => component,
            Cow::Borrowed(_) => source,
        };
        // Debug information says where each byte of code is.
        let extracted = if is_debugged { None } else { snapshot::extract(&component)? };
        Ok(Self { flavor, component, extracted })
    }

    /// Whether there may be another component with the same code.
    pub(crate) fn shares_code(&self) -> bool {
        self.extracted.is_some() && self.is_large()
    }

    /// Whether it takes noticeable time to compile.
    pub(crate) fn is_large(&self) -> bool {
        let component = self.extracted.as_ref().map_or(&self.component, |extracted| &extracted.component);
        component.len() >= LEAST_SHARED_BYTES
    }

    /// The code to look for first, and to compile rather than any other.
    ///
    /// # Errors
    /// If the component is malformed.
    pub(crate) fn candidate(&self) -> Result<Option<Candidate>, Error> {
        match self.candidate_with(InitialValues::InMemory)? {
            None => self.candidate_with(InitialValues::InCode),
            candidate => Ok(candidate),
        }
    }

    /// The code to look for if that is not found.
    ///
    /// # Errors
    /// If the component is malformed.
    pub(crate) fn candidate_after(&self, candidate: &Candidate) -> Result<Option<Candidate>, Error> {
        match candidate.values {
            InitialValues::InMemory => self.candidate_with(InitialValues::InCode),
            InitialValues::InCode => Ok(None),
        }
    }

    fn candidate_with(&self, values: InitialValues) -> Result<Option<Candidate>, Error> {
        let Some(extracted) = self.extracted.as_ref().filter(|_| self.shares_code()) else {
            return Ok(None);
        };
        let takes_variables = values == InitialValues::InMemory;
        Ok(code::separate(&extracted.component, takes_variables)?.map(|Code { component, beginning }| {
            let (digest, beginning) = (Digest::of(&component), Arc::new(beginning));
            Candidate { digest, beginning, component, values }
        }))
    }

    /// What its memory begins with.
    pub(crate) fn into_contents(self) -> Option<Contents> {
        self.extracted.map(|extracted| extracted.contents)
    }

    /// Compiles it, with a function that does. Of its candidates these are known already,
    /// the first ones.
    ///
    /// # Errors
    /// What that function says, and if the component is malformed.
    pub(crate) fn compile(
        self,
        candidates: Vec<Candidate>,
        compile: impl Fn(&[u8], Flavor) -> Result<Vec<u8>, Error>,
    ) -> Result<Compiled, Error> {
        let flavor = self.flavor.with_snapshot();
        let mut known = candidates.into_iter();
        let mut next = known.next().map_or_else(|| self.candidate(), |candidate| Ok(Some(candidate)))?;
        let mut last = None;
        while let Some(candidate) = next {
            if let Some(component) = rewind::prepare(&candidate.component, candidate.values)? {
                let code = compile(&component, flavor)?;
                let shared = Some((candidate.digest, candidate.beginning));
                return Ok(Compiled {
                    flavor,
                    code,
                    contents: self.into_contents(),
                    can_rewind: true,
                    shared,
                });
            }
            next = match known.next() {
                None => self.candidate_after(&candidate)?,
                candidate => candidate,
            };
            last = Some(candidate);
        }
        if let Some(extracted) = self.extracted {
            let Extracted { component, contents, data_bytes } = extracted;
            let has_much_data = data_bytes >= LARGE_CONTENTS_BYTES;
            let contents = Some(contents);
            if let Some(candidate) = last {
                // Its variables are in the code: nobody would put values into them.
                if has_much_data && candidate.values == InitialValues::InCode {
                    let code = compile(&candidate.component, flavor)?;
                    let shared = Some((candidate.digest, candidate.beginning));
                    return Ok(Compiled { flavor, code, contents, can_rewind: false, shared });
                }
            } else if let Some(component) = rewind::prepare(&component, InitialValues::InCode)? {
                let code = compile(&component, flavor)?;
                return Ok(Compiled { flavor, code, contents, can_rewind: true, shared: None });
            } else if has_much_data {
                let code = compile(&component, flavor)?;
                return Ok(Compiled { flavor, code, contents, can_rewind: false, shared: None });
            }
        }
        let (flavor, code) = (self.flavor, compile(&self.component, self.flavor)?);
        Ok(Compiled { flavor, code, contents: None, can_rewind: false, shared: None })
    }
}
