//! `wisp compile-image`: compiles one component, in a process that does nothing else.
//!
//! Not for people: `wisp server` starts it, see `wisp_server::compile_image`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use crate::{error::Error, output};

/// Compile one component into a compiled image, within limits.
#[derive(Args)]
pub(crate) struct CompileImage {
    /// The component.
    source: PathBuf,

    /// Where the image is written.
    folder: PathBuf,

    /// A folder of images whose code the image may refer to.
    #[arg(long, value_name = "FOLDER")]
    lender: Option<PathBuf>,

    /// CPU time that it may take, in seconds.
    #[arg(long, value_name = "SECONDS")]
    max_cpu_s: u64,

    /// Memory that it may take.
    #[arg(long, value_name = "BYTES")]
    max_memory_bytes: u64,

    /// The largest component.
    #[arg(long, value_name = "BYTES")]
    max_source_bytes: u64,
}

impl CompileImage {
    pub(crate) fn run(&self) -> Result<(), Error> {
        let cpu_time = Duration::from_secs(self.max_cpu_s);
        let (memory_bytes, source_bytes) = (self.max_memory_bytes, self.max_source_bytes);
        let report = wisp_server::compile_image(
            &self.source,
            &self.folder,
            self.lender.as_deref(),
            cpu_time,
            memory_bytes,
            source_bytes,
        )?;
        output::data(&format!("{report}\n"));
        Ok(())
    }
}
