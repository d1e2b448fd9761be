//! Compiled images on disk.
//!
//! An image is a file `DIGEST-ENGINE-FLAVOR.cwasm`: the source's digest, the
//! engine's compatibility hash, the flavor. Its contents are what Wasmtime
//! serialised, then the initial contents of the component's memory if that is a
//! snapshot (at the start of a page, so that it can be mapped), then a trailer:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | where the memory's contents begin in the file, little-endian |
//! | 8 | their length; 0 if there are none |
//! | 8 | their address in the memory |
//! | 8 | 1 if instances can be rewound, else 0 |
//! | 32 | BLAKE3 checksum of all bytes before it |
//! | 8 | `WISPIMG2` |
//!
//! Loading native code that is not what the compiler wrote is undefined
//! behaviour, so nothing is mapped before its checksum was compared. The file is
//! opened once and both read and mapped through that one descriptor: a file
//! renamed over it in between changes nothing.
//!
//! # What is known is not read again
//!
//! A checksum costs a read of the whole image, several times what mapping it does.
//! So the store remembers the [`FileIdentity`] of each image that it verified, for as
//! long as the process runs, and maps an image at once whose identity is still that.
//! For the same reason it remembers the digests of sources by their identity, and
//! this across starts: in `sources.index`, a list of fixed records beside the images
//! (see [`SourceIndex`]).
//!
//! Both cost some 100 bytes an image in memory, whether it is mapped or not.
//!
//! # Signed images
//!
//! In a store that was opened with a key, 64 bytes of signature over the file's name and
//! the checksum follow, and `WISPSIG1`. Such a store maps nothing that lacks them.

use std::{
    collections::HashMap,
    fs::{self, File},
    hash::{Hash, Hasher},
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use wasmtime::{Engine, component::Component};

use crate::{
    Digest, Error, FileIdentity, Flavor, SigningKey, VerifyingKey,
    memory::{self, MemoryImage, Place, snapshot::Contents},
    signature::SIGNATURE_BYTES,
    source_index::SourceIndex,
};

/// Ends every whole image; the digit counts versions of the trailer.
const TRAILER_MAGIC: &[u8; 8] = b"WISPIMG2";

/// Where the memory's contents lie and what they are good for: four numbers.
const CONTENTS_BYTES: usize = 4 * size_of::<u64>();

/// The trailer: where the contents lie, a checksum and the magic.
const TRAILER_BYTES: usize = CONTENTS_BYTES + blake3::OUT_LEN + TRAILER_MAGIC.len();

/// Ends every signed image.
const SIGNED_MAGIC: &[u8; 8] = b"WISPSIG1";

/// What follows the trailer of a signed image.
const SIGNED_TRAILER_BYTES: usize = SIGNATURE_BYTES + SIGNED_MAGIC.len();

/// How much of an image is read at once while its checksum is computed.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Counts changes to what is made of a source before it is compiled: an image made
/// by an older version must not be found.
const NORMALIZER_VERSION: u32 = 5;

/// What is written for one component.
pub(crate) struct Image<'bytes> {
    /// Native code, as Wasmtime serialised it.
    pub(crate) code: &'bytes [u8],
    /// What its memory begins with, where that was taken out of it.
    pub(crate) contents: Option<&'bytes Contents>,
    /// Whether its instances can be rewound.
    pub(crate) can_rewind: bool,
}

/// An image that was mapped.
pub(crate) struct Mapped {
    pub(crate) component: Component,
    /// What its memory begins with, and whether instances can be rewound.
    pub(crate) memory: Option<(MemoryImage, bool)>,
    pub(crate) image_bytes: u64,
}

/// What an image says about its component's memory.
#[derive(Clone, Copy, Debug)]
struct MemoryFacts {
    place: Place,
    can_rewind: bool,
}

/// The name of the list of sources whose digests are known.
const SOURCE_INDEX_NAME: &str = "sources.index";

/// A folder of compiled images. Several processes may share one.
#[derive(Clone, Debug)]
pub struct ImageStore {
    folder: PathBuf,
    /// Whoever has to have signed an image.
    key: Option<VerifyingKey>,
    verified: Arc<Mutex<HashMap<ShortDigest, Verified>>>,
    sources: Arc<SourceIndex>,
    /// Engines whose compatibility hash is known: a handful. To compute it takes longer
    /// than to open a file.
    engines: Arc<Mutex<Vec<KnownEngine>>>,
}

/// An engine and its compatibility hash.
type KnownEngine = (Engine, Arc<str>);

/// Half of a digest: enough to tell images apart, since what is found by it must
/// also have the right file name.
type ShortDigest = [u8; 16];

/// An image that was verified in this process.
#[derive(Clone, Copy, Debug)]
struct Verified {
    identity: FileIdentity,
    flavor: Flavor,
    memory: Option<MemoryFacts>,
}

impl ImageStore {
    /// Opens the store in `folder`, which is created if absent.
    ///
    /// # Errors
    /// [`Error::ImageStore`] if the folder cannot be created.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, Error> {
        let folder = folder.into();
        fs::create_dir_all(&folder).map_err(|cause| Error::ImageStore { path: folder.clone(), cause })?;
        let sources = Arc::new(SourceIndex::open(folder.join(SOURCE_INDEX_NAME)));
        Ok(Self { folder, key: None, verified: Arc::default(), sources, engines: Arc::default() })
    }

    /// The same, and maps only what the owner of the key signed. An engine with this
    /// store compiles nothing.
    ///
    /// # Errors
    /// As [`ImageStore::open`].
    pub fn open_signed(folder: impl Into<PathBuf>, key: VerifyingKey) -> Result<Self, Error> {
        Ok(Self { key: Some(key), ..Self::open(folder)? })
    }

    /// Whether only signed images are mapped.
    pub(crate) fn is_signed(&self) -> bool {
        self.key.is_some()
    }

    /// Whether there is an image of a source that would be mapped. Reads it unless it is
    /// known.
    pub fn has(&self, source: &Digest, engine: &crate::Engine) -> bool {
        Flavor::ALL.into_iter().any(|flavor| self.load(source, engine.wasmtime(flavor), flavor).is_some())
    }

    /// Where the images of a source for an engine are or would be.
    pub fn paths(&self, source: &Digest, engine: &crate::Engine) -> Vec<PathBuf> {
        Flavor::ALL.into_iter().map(|flavor| self.path(source, engine.wasmtime(flavor), flavor)).collect()
    }

    /// Signs an image that [`compile_file`](crate::compile_file) made, and takes it in.
    /// It is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::Unsigned`] if it is no whole image of that source, and
    /// [`Error::ImageStore`].
    pub fn adopt(&self, image: &Path, source: &Digest, key: &SigningKey) -> Result<(), Error> {
        let failed = |cause| Error::ImageStore { path: image.to_owned(), cause };
        let refused = |reason: &str| Error::Unsigned { reason: reason.to_owned() };
        let name = image.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.strip_prefix(&source.to_string()).is_some_and(|rest| rest.starts_with('-')) {
            return Err(refused("what was compiled is not what was asked for"));
        }
        let mut from = File::open(image).map_err(failed)?;
        let length_bytes = from.metadata().map_err(failed)?.len();
        let (_, checksum) =
            verify(&mut from, length_bytes, None).map_err(|reason| Error::Unsigned { reason })?;
        let path = self.folder.join(name);
        let written = (|| {
            let mut file = tempfile::Builder::new().prefix(".writing-").tempfile_in(&self.folder)?;
            from.rewind()?;
            io::copy(&mut from, file.as_file_mut())?;
            file.write_all(&key.sign(name, &checksum))?;
            file.write_all(SIGNED_MAGIC)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(&self.folder)?.sync_all()
        })();
        written.map_err(|cause| Error::ImageStore { path, cause })
    }

    /// The digests of sources by their files' identity.
    pub(crate) fn sources(&self) -> &SourceIndex {
        &self.sources
    }

    /// The flavor of an image that was verified in this process.
    pub(crate) fn verified_flavor(&self, source: &Digest) -> Option<Flavor> {
        Some(self.verified_image(source)?.flavor)
    }

    fn verified_image(&self, source: &Digest) -> Option<Verified> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&short(source)).copied()
    }

    fn remember(&self, source: &Digest, verified: Verified) {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(short(source), verified);
    }

    /// Maps an image if it was verified in this process and its file is still the
    /// same; `None` says nothing about whether there is one.
    pub(crate) fn load_verified(&self, source: &Digest, engine: &Engine, flavor: Flavor) -> Option<Mapped> {
        let known = self.verified_image(source).filter(|known| known.flavor == flavor)?;
        let path = self.path(source, engine, flavor);
        let file = File::open(&path).ok()?;
        if FileIdentity::of(&file).ok()? != known.identity {
            return None;
        }
        map(path, &file, engine, &known).ok()
    }

    /// Where the image of `source` for `engine` is or would be.
    pub fn path(&self, source: &Digest, engine: &Engine, flavor: Flavor) -> PathBuf {
        let (flavor_name, compatibility) = (flavor.name(), self.compatibility(engine));
        self.folder.join(format!("{source}-{compatibility}-{flavor_name}.cwasm"))
    }

    fn compatibility(&self, engine: &Engine) -> Arc<str> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = engines.iter().find(|(known, _)| Engine::same(known, engine)) {
            return known.clone();
        }
        let computed: Arc<str> = compatibility(engine).into();
        engines.push((engine.clone(), computed.clone()));
        computed
    }

    /// Maps an image if the store holds a sound one; `None` if it must be compiled.
    pub(crate) fn load(&self, source: &Digest, engine: &Engine, flavor: Flavor) -> Option<Mapped> {
        let path = self.path(source, engine, flavor);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled image cannot be opened, compiling again");
                return None;
            }
        };
        match self.verify_and_map(&path, file, source, engine, flavor) {
            Ok(mapped) => Some(mapped),
            Err(reason) => {
                let then = if self.is_signed() { "it is not used" } else { "compiling again" };
                tracing::warn!(path = %path.display(), reason, "compiled image is damaged, {then}");
                None
            }
        }
    }

    fn verify_and_map(
        &self,
        path: &Path,
        mut file: File,
        source: &Digest,
        engine: &Engine,
        flavor: Flavor,
    ) -> Result<Mapped, String> {
        let identity = FileIdentity::of(&file).map_err(|error| format!("it cannot be read: {error}"))?;
        let is_settled = identity.is_settled();
        let verified = match self.verified_image(source) {
            Some(known) if known.identity == identity && known.flavor == flavor => known,
            _ => {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let key = self.key.as_ref().map(|key| (key, name));
                let (memory, _) = verify(&mut file, identity.size_bytes(), key)?;
                Verified { identity, flavor, memory }
            }
        };
        let mapped = map(path.to_owned(), &file, engine, &verified)?;
        if is_settled {
            self.remember(source, verified);
        }
        Ok(mapped)
    }

    /// Writes an image so that whoever looks sees it whole or not at all.
    pub(crate) fn insert(
        &self,
        source: &Digest,
        engine: &Engine,
        flavor: Flavor,
        image: &Image<'_>,
    ) -> Result<(), Error> {
        let path = self.path(source, engine, flavor);
        let (identity, memory) = write_atomically(&self.folder, &path, image)
            .map_err(|cause| Error::ImageStore { path, cause })?;
        // However young it is: nobody else writes to a file in place.
        self.remember(source, Verified { identity, flavor, memory });
        Ok(())
    }
}

fn short(digest: &Digest) -> ShortDigest {
    let mut short = ShortDigest::default();
    short.copy_from_slice(&digest.as_bytes()[..size_of::<ShortDigest>()]);
    short
}

/// Maps the file at `path` that is known to hold what the compiler wrote.
fn map(path: PathBuf, file: &File, engine: &Engine, verified: &Verified) -> Result<Mapped, String> {
    let image_bytes = verified.identity.size_bytes();
    // SAFETY: the callers have compared the checksum of this very file, now or when it
    // had the same identity, so these are the bytes that `insert` was given by the
    // compiler; and the engine's own header check (inside) refuses an image of another
    // engine version or configuration.
    let component = unsafe {
        if memory::code::IS_USED && verified.flavor.has_snapshot() {
            memory::code::map(engine, file, usize::try_from(image_bytes).unwrap_or(usize::MAX))?
        } else {
            // Through the descriptor, so that what is mapped is what was verified.
            let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
            Component::deserialize_file(engine, descriptor).map_err(|error| error.to_string())?
        }
    };
    let memory = verified
        .memory
        .map(|facts| {
            MemoryImage::in_image(&component, path, verified.identity, facts.place)
                .map(|image| (image, facts.can_rewind))
                .ok_or("its memory is not in it")
        })
        .transpose()?;
    Ok(Mapped { component, memory, image_bytes })
}

/// Returns the identity of what was written, and where the memory's contents are in it.
fn write_atomically(
    folder: &Path,
    path: &Path,
    image: &Image<'_>,
) -> io::Result<(FileIdentity, Option<MemoryFacts>)> {
    let file = tempfile::Builder::new().prefix(".writing-").tempfile_in(folder)?;
    let mut writer = Hashing { file: file.as_file(), hasher: blake3::Hasher::new() };
    writer.write_all(image.code)?;
    let mut facts = None;
    if let Some(Contents { bytes, address }) = image.contents {
        let start_bytes = image.code.len().next_multiple_of(memory::page_bytes());
        writer.write_all(&vec![0; start_bytes - image.code.len()])?;
        writer.write_all(bytes)?;
        let (offset_bytes, length_bytes) = (start_bytes as u64, bytes.len());
        let place = Place { offset_bytes, length_bytes, address: *address };
        facts = Some(MemoryFacts { place, can_rewind: image.can_rewind });
    }
    let numbers = facts.map_or([0; 4], |MemoryFacts { place, can_rewind }| {
        let (length, address) = (place.length_bytes as u64, place.address as u64);
        [place.offset_bytes, length, address, u64::from(can_rewind)]
    });
    for number in numbers {
        writer.write_all(&number.to_le_bytes())?;
    }
    let checksum = writer.hasher.finalize();
    file.as_file().write_all(checksum.as_bytes())?;
    file.as_file().write_all(TRAILER_MAGIC)?;
    // Not synced: what a power cut leaves of it fails its checksum and is compiled again,
    // while waiting for the disk would take longer than compiling a small component.
    let file = file.persist(path)?;
    Ok((FileIdentity::of(&file)?, facts))
}

/// Writes to a file and computes its checksum.
struct Hashing<'file> {
    file: &'file File,
    hasher: blake3::Hasher,
}

impl Hashing<'_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

/// Compares the file's checksum, and who signed it if a key is given; on success nothing
/// but the compiler wrote it. Tells what it says about the component's memory, if that is
/// in it, and the checksum.
fn verify(
    file: &mut File,
    length_bytes: u64,
    key: Option<(&VerifyingKey, &str)>,
) -> Result<(Option<MemoryFacts>, [u8; blake3::OUT_LEN]), String> {
    let read_error = |error: io::Error| format!("it cannot be read: {error}");
    let signature_bytes = if key.is_some() { SIGNED_TRAILER_BYTES } else { 0 };
    let Some(mut remaining_bytes) = length_bytes.checked_sub((TRAILER_BYTES + signature_bytes) as u64) else {
        return Err("it is truncated".into());
    };
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    while remaining_bytes > 0 {
        let wanted = usize::try_from(remaining_bytes).unwrap_or(usize::MAX).min(buffer.len());
        let count = file.read(&mut buffer[..wanted]).map_err(read_error)?;
        if count == 0 {
            return Err("it is truncated".into());
        }
        hasher.update(&buffer[..count]);
        remaining_bytes -= count as u64;
    }
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact(&mut trailer).map_err(read_error)?;
    let (place, rest) = trailer.split_at(CONTENTS_BYTES);
    hasher.update(place);
    let (checksum, magic) = rest.split_at(blake3::OUT_LEN);
    if magic != TRAILER_MAGIC {
        return Err("its trailer is missing".into());
    }
    let computed = *hasher.finalize().as_bytes();
    if checksum != computed {
        return Err("its checksum differs".into());
    }
    if let Some((key, name)) = key {
        let mut signed = [0; SIGNED_TRAILER_BYTES];
        file.read_exact(&mut signed).map_err(read_error)?;
        let (signature, magic) = signed.split_at(SIGNATURE_BYTES);
        if magic != SIGNED_MAGIC || !key.has_signed(name, &computed, signature) {
            return Err("it is not signed by this control plane".into());
        }
    }
    let mut numbers = place
        .chunks_exact(size_of::<u64>())
        .map(|bytes| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes));
    let mut next = || numbers.next().unwrap_or(0);
    let (offset_bytes, length_bytes, address, can_rewind) = (next(), next(), next(), next() == 1);
    if length_bytes == 0 {
        return Ok((None, computed));
    }
    let (Ok(length_bytes), Ok(address)) = (usize::try_from(length_bytes), usize::try_from(address)) else {
        return Err("its memory is too large".into());
    };
    let place = Place { offset_bytes, length_bytes, address };
    Ok((Some(MemoryFacts { place, can_rewind }), computed))
}

/// The engine's compatibility hash: its version, settings and the processor.
fn compatibility(engine: &Engine) -> String {
    let mut hasher = StableHasher(blake3::Hasher::new());
    NORMALIZER_VERSION.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex::encode(&hasher.0.finalize().as_bytes()[..8])
}

/// A `Hasher` that gives the same result in every process.
struct StableHasher(blake3::Hasher);

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::EngineConfig;

    struct Fixture {
        _folder: tempfile::TempDir,
        store: ImageStore,
        engine: Engine,
        digest: Digest,
        path: PathBuf,
    }

    /// A store with one sound image in it.
    fn fixture() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(folder.path().join("images")).unwrap();
        let config = EngineConfig { pooling: false, ..EngineConfig::default() };
        let engine = config.engine(Flavor::Plain).unwrap();
        let source = wat::parse_str("(component)").unwrap();
        let digest = Digest::of(&source);
        let image = engine.precompile_component(&source).unwrap();
        store
            .insert(
                &digest,
                &engine,
                Flavor::Plain,
                &Image { code: &image, contents: None, can_rewind: false },
            )
            .unwrap();
        let path = store.path(&digest, &engine, Flavor::Plain);
        Fixture { _folder: folder, store, engine, digest, path }
    }

    impl Fixture {
        /// Whether a process that knows nothing yet loads the image.
        fn loads(&self) -> bool {
            let store = ImageStore::open(&self.store.folder).unwrap();
            store.load(&self.digest, &self.engine, Flavor::Plain).is_some()
        }
    }

    #[test]
    fn a_sound_image_loads() {
        assert!(fixture().loads());
    }

    #[test]
    fn a_verified_image_is_not_read_again_until_its_file_changes() {
        let fixture = fixture();
        let known = |store: &ImageStore| {
            store.load_verified(&fixture.digest, &fixture.engine, Flavor::Plain).is_some()
        };
        assert!(known(&fixture.store), "whoever wrote it knows it");
        let other = ImageStore::open(&fixture.store.folder).unwrap();
        assert!(!known(&other), "nobody else does");
        // The same bytes in another file.
        let copy = fixture.path.with_extension("copy");
        fs::copy(&fixture.path, &copy).unwrap();
        fs::rename(&copy, &fixture.path).unwrap();
        assert!(!known(&fixture.store));
        fs::remove_file(&fixture.path).unwrap();
        assert!(!known(&fixture.store));
    }

    #[test]
    fn an_absent_image_does_not() {
        let fixture = fixture();
        fs::remove_file(&fixture.path).unwrap();
        assert!(!fixture.loads());
    }

    #[test]
    fn no_altered_byte_goes_unnoticed() {
        let fixture = fixture();
        let sound = fs::read(&fixture.path).unwrap();
        // Every 97th byte, and all of the trailer.
        let positions = (0..sound.len()).step_by(97).chain(sound.len() - TRAILER_BYTES..sound.len());
        for position in positions {
            let mut altered = sound.clone();
            altered[position] ^= 1;
            fs::write(&fixture.path, altered).unwrap();
            assert!(!fixture.loads(), "byte {position} altered");
        }
    }

    #[test]
    fn no_truncation_goes_unnoticed() {
        let fixture = fixture();
        let sound = fs::read(&fixture.path).unwrap();
        for length in [0, 1, TRAILER_BYTES - 1, TRAILER_BYTES, sound.len() / 2, sound.len() - 1] {
            fs::write(&fixture.path, &sound[..length]).unwrap();
            assert!(!fixture.loads(), "cut to {length} bytes");
        }
    }

    #[test]
    fn only_what_the_key_signed_is_loaded_and_under_no_other_name() {
        let fixture = fixture();
        let folder = fixture._folder.path().join("signed");
        let key = SigningKey::open(&fixture._folder.path().join("keys/image.key")).unwrap();
        let again = SigningKey::open(&fixture._folder.path().join("keys/image.key")).unwrap();
        assert_eq!(key.verifying_key(), again.verifying_key());
        let stranger = SigningKey::open(&fixture._folder.path().join("other.key")).unwrap();
        let loads = |key: &SigningKey, digest: &Digest| {
            let store = ImageStore::open_signed(&folder, key.verifying_key()).unwrap();
            store.load(digest, &fixture.engine, Flavor::Plain).is_some()
        };
        let signed = ImageStore::open_signed(&folder, key.verifying_key()).unwrap();
        signed.adopt(&fixture.path, &fixture.digest, &key).unwrap();
        assert!(loads(&key, &fixture.digest));
        assert!(!loads(&stranger, &fixture.digest));
        let path = signed.path(&fixture.digest, &fixture.engine, Flavor::Plain);
        let sound = fs::read(&path).unwrap();
        for position in (0..sound.len()).step_by(97).chain(sound.len() - SIGNED_TRAILER_BYTES..sound.len()) {
            let mut altered = sound.clone();
            altered[position] ^= 1;
            fs::write(&path, altered).unwrap();
            assert!(!loads(&key, &fixture.digest), "byte {position} altered");
        }
        // Sound, and not signed at all.
        fs::copy(&fixture.path, &path).unwrap();
        assert!(!loads(&key, &fixture.digest));
        let other = Digest::of(b"other");
        fs::write(signed.path(&other, &fixture.engine, Flavor::Plain), &sound).unwrap();
        assert!(!loads(&key, &other));
        assert!(signed.adopt(&fixture.path, &other, &key).is_err());
    }

    #[test]
    fn an_image_of_another_engine_is_not_loaded() {
        let fixture = fixture();
        let other = EngineConfig { pooling: false, debug_info: true, ..EngineConfig::default() };
        let other = other.engine(Flavor::Plain).unwrap();
        assert!(fixture.store.load(&fixture.digest, &other, Flavor::Plain).is_none());
        // Also when somebody renames it to what that engine looks for.
        fs::copy(&fixture.path, fixture.store.path(&fixture.digest, &other, Flavor::Plain)).unwrap();
        assert!(fixture.store.load(&fixture.digest, &other, Flavor::Plain).is_none());
    }
}
