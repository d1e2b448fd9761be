//! Compiling in a process of its own.
//!
//! A component is a program of a stranger's, and compiling it is running a large program
//! of ours on input that was made to harm it, possibly: it may take for ever, take all
//! memory, or find a defect of the compiler. So each is compiled by a process that does
//! nothing else (`wisp compile-image`): with limits on CPU time and memory that the
//! kernel keeps, behind everybody else, and with nothing of the platform in it. What it
//! writes is signed here, and only then does the node map it. Code that was compiled
//! before, for a component that begins with something else, is not compiled again: the
//! process sees that it is in `images/`, and refers to it; whether it is sound is looked
//! at here.
//!
//! Life of a compilation: a folder in `scratch/` → the process → its report on standard
//! output → the image is checked, signed, synced and moved into `images/` → the folder
//! is removed. Killed at any point, nothing is left but the folder, which the next start
//! removes.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use wisp_engine::{Digest, Engine, EngineConfig, ImageStore, SigningKey};

use crate::{Error, garbage::InUse};

/// How often it is looked whether the process has ended.
const LOOK: Duration = Duration::from_millis(5);

/// The longest report that is read.
const REPORT_BYTES: u64 = 64 << 10;

/// How much longer than its CPU time the process may go on.
const CPU_GRACE_S: u64 = 5;

/// Compiling a component once more helps if the first time relied on code that turned out
/// not to be sound, which is gone then.
const MAX_ATTEMPTS_COUNT: u32 = 2;

/// How far behind all others the process stands.
const NICENESS: i32 = 19;

/// What one component may take to compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// CPU time.
    pub cpu_time: Duration,
    /// Time on the clock: more than the CPU time, since others go first.
    pub time: Duration,
    /// Memory.
    pub memory_bytes: u64,
    /// The largest source.
    pub source_bytes: u64,
}

/// Compiles components apart, and signs what comes of it.
pub(crate) struct Compiler {
    program: PathBuf,
    scratch: PathBuf,
    images: ImageStore,
    key: SigningKey,
    limits: CompileLimits,
    in_use: InUse,
    /// One component takes all cores; more at once would only hold more memory.
    turn: Arc<Semaphore>,
}

/// What the process says on standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    /// The image's file.
    Image(PathBuf),
    /// The component cannot be compiled.
    Refused { code: String, message: String, hint: Option<String> },
}

impl CompileLimits {
    /// The largest real guests take a minute of CPU time and half a gigabyte.
    pub const DEFAULT: Self = Self {
        cpu_time: Duration::from_secs(300),
        time: Duration::from_secs(600),
        memory_bytes: 4 << 30,
        source_bytes: 256 << 20,
    };
}

impl Compiler {
    /// A compiler that runs `program` (this very binary) and takes in images for `images`.
    pub(crate) fn new(
        program: PathBuf,
        scratch: PathBuf,
        images: ImageStore,
        key: SigningKey,
        limits: CompileLimits,
        in_use: InUse,
    ) -> Self {
        Self { program, scratch, images, key, limits, in_use, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Where the code of an image is, if others may have the same.
    pub(crate) fn code_path_of(&self, image: &Path) -> Option<PathBuf> {
        self.images.code_path_of(image)
    }

    /// Where the images of a source are or would be.
    pub(crate) fn paths(&self, source: &Digest, engine: &Engine) -> Vec<PathBuf> {
        self.images.paths(source, engine)
    }

    /// The digest of a source. One that is named by its digest is not read.
    ///
    /// # Errors
    /// If the source cannot be read.
    pub(crate) fn digest_of(&self, source: &Path) -> Result<Digest, Error> {
        let named = source.file_stem().and_then(|stem| Digest::parse(stem.to_str()?));
        named.map_or_else(|| self.digest(source), Ok)
    }

    /// Makes sure that there is a signed image of a source. Returns whether it had to be
    /// compiled.
    ///
    /// # Errors
    /// [`Error::Compile`] with what the compiler said, [`Error::CompileLimit`] if it took
    /// too much, and [`Error::CompileProcess`] if there can be no such process.
    pub(crate) async fn ensure(self: &Arc<Self>, engine: &Engine, source: &Path) -> Result<bool, Error> {
        let (this, source, known_engine) = (self.clone(), source.to_owned(), engine.clone());
        let known = blocking(move || {
            let digest = this.digest(&source)?;
            // Before it is looked for: what is found stays.
            for path in this.paths(&digest, &known_engine) {
                this.touch_with_code(&path)?;
            }
            Ok((this.images.has(&digest, &known_engine), digest, source))
        });
        let (is_there, digest, source) = known.await?;
        if is_there {
            return Ok(false);
        }
        // Never closed.
        let turn = self.turn.clone().acquire_owned().await.ok();
        let (this, engine) = (self.clone(), engine.clone());
        blocking(move || {
            let _turn = turn;
            // Somebody else may have wanted the same.
            if this.images.has(&digest, &engine) {
                return Ok(false);
            }
            this.compile(&source, &digest).map(|()| true)
        })
        .await
    }

    fn digest(&self, source: &Path) -> Result<Digest, Error> {
        let failed = |cause| Error::Engine(wisp_engine::Error::Read { path: source.to_owned(), cause });
        let size_bytes = fs::metadata(source).map_err(failed)?.len();
        let max_bytes = self.limits.source_bytes;
        if size_bytes > max_bytes {
            return Err(Error::Engine(wisp_engine::Error::TooLarge {
                path: source.to_owned(),
                size_bytes,
                max_bytes,
            }));
        }
        Ok(Digest::of(&fs::read(source).map_err(failed)?))
    }

    /// Compiles, checks, signs.
    fn compile(&self, source: &Path, digest: &Digest) -> Result<(), Error> {
        let process = |cause| Error::CompileProcess { cause };
        for attempt in 0..MAX_ATTEMPTS_COUNT {
            let folder =
                tempfile::Builder::new().prefix("compile-").tempdir_in(&self.scratch).map_err(process)?;
            let borrows = attempt + 1 < MAX_ATTEMPTS_COUNT;
            match self.run(source, folder.path(), borrows)? {
                Report::Image(image) => {
                    // Before it is looked at: if it is sound, it stays.
                    self.touch_with_code(&image)?;
                    if self.images.adopt(&image, digest, &self.key)? {
                        return Ok(());
                    }
                }
                Report::Refused { code, message, hint } => {
                    return Err(Error::Compile { code, message, hint });
                }
            }
        }
        Err(process(std::io::Error::other("it did not compile what it was to compile")))
    }

    /// Notes that an image is used from now on, and the code that it refers to.
    fn touch_with_code(&self, image: &Path) -> Result<(), Error> {
        for path in [Some(image.to_owned()), self.images.code_path_of(image)].into_iter().flatten() {
            self.in_use.touch(&path).map_err(|cause| Error::DataDirectory { path, cause })?;
        }
        Ok(())
    }

    fn run(&self, source: &Path, folder: &Path, borrows: bool) -> Result<Report, Error> {
        let process = |cause| Error::CompileProcess { cause };
        let mut child = Command::new(&self.program)
            .arg("compile-image")
            .arg(source)
            .arg(folder)
            .args(["--max-cpu-s", &self.limits.cpu_time.as_secs().to_string()])
            .args(["--max-memory-bytes", &self.limits.memory_bytes.to_string()])
            .args(["--max-source-bytes", &self.limits.source_bytes.to_string()])
            .args(borrows.then_some("--lender"))
            .args(borrows.then(|| self.images.folder()))
            // Nothing of the server's environment, which may hold secrets.
            .env_clear()
            // What the allocator only reserves is not to count as memory.
            .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(process)?;
        // Read beside, so that a long report cannot block the process.
        let reading = child.stdout.take().map(|stdout| {
            thread::spawn(move || {
                let mut report = Vec::new();
                // What is cut off is no report.
                drop(stdout.take(REPORT_BYTES).read_to_end(&mut report));
                report
            })
        });
        let status = wait(&mut child, self.limits.time).map_err(process)?;
        let report = reading.and_then(|reading| reading.join().ok()).unwrap_or_default();
        let Some(status) = status else {
            return Err(Error::CompileLimit { what: format!("{:?}", self.limits.time) });
        };
        match serde_json::from_slice(&report) {
            Ok(report) => Ok(report),
            Err(_) => Err(self.explain(status)),
        }
    }

    /// Why a process ended without a report.
    fn explain(&self, status: ExitStatus) -> Error {
        use std::os::unix::process::ExitStatusExt as _;
        let what = match status.signal() {
            Some(signal) if signal == rustix::process::Signal::XCPU.as_raw() => {
                format!("{:?} of CPU time", self.limits.cpu_time)
            }
            // What a program does that gets no memory, or that the kernel ends for it.
            Some(_) => format!("{} MiB of memory", self.limits.memory_bytes >> 20),
            None => {
                return Error::CompileProcess {
                    cause: std::io::Error::other(format!("it ended with {status}")),
                };
            }
        };
        Error::CompileLimit { what }
    }
}

/// Waits for the end of a process; ends it if that takes too long.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::CompileProcess { cause: std::io::Error::other(error) }))
}

/// What `wisp compile-image` does: puts this process under its limits, compiles a source
/// into an image in `folder`, and returns the report for standard output. The image may
/// refer to code in the folder `lender`.
///
/// # Errors
/// [`Error::CompileProcess`] if the limits cannot be set: then nothing is read.
pub fn compile_image(
    source: &Path,
    folder: &Path,
    lender: Option<&Path>,
    cpu_time: Duration,
    memory_bytes: u64,
    source_bytes: u64,
) -> Result<String, Error> {
    let process = |error: rustix::io::Errno| Error::CompileProcess { cause: error.into() };
    let limit = |resource, current: u64, maximum: u64| {
        setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) }).map_err(process)
    };
    // At the first the signal says why it ends; at the second it ends in any case.
    limit(Resource::Cpu, cpu_time.as_secs(), cpu_time.as_secs() + CPU_GRACE_S)?;
    // What is written to, not address space: the engine reserves much more than it uses.
    limit(Resource::Data, memory_bytes, memory_bytes)?;
    limit(Resource::Core, 0, 0)?;
    // If it is refused, the process is merely less polite.
    let _ = rustix::process::nice(NICENESS);
    // Whoever started it bounds the time on the clock.
    let config = EngineConfig {
        max_source_bytes: source_bytes,
        max_compile_time: Duration::from_secs(24 * 60 * 60),
        ..EngineConfig::default()
    };
    let report = match wisp_engine::compile_file(&config, source, folder, lender) {
        Ok(image) => Report::Image(image),
        // A compiler that gets no memory aborts in some places and panics in others.
        Err(wisp_engine::Error::Compile { .. }) if peak_bytes() > memory_bytes / 2 => std::process::abort(),
        Err(error) => {
            Report::Refused { code: error.code().into(), message: error.to_string(), hint: error.hint() }
        }
    };
    serde_json::to_string(&report).map_err(|error| Error::CompileProcess { cause: error.into() })
}

/// The most memory of this process that was resident.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}
