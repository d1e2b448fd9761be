//! Apps by the thousand, each different from all others.
//!
//! A *fleet* is a folder of apps as `wisp serve --apps` takes it, made of one built
//! guest. It is kept below the target folder from run to run, with its compiled
//! images beside it, because compiling them takes minutes. `wisp-bench clean`
//! removes all fleets.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::Error;
use crate::guest::Guest;
use crate::peer;
use crate::report::progress;
use crate::response::Expected;

/// The folder of all fleets, below the target folder.
const FLEETS: &str = "bench-fleets";
/// What comes before the number in the data of the tiny guest.
const SENTENCE: &[u8] = b"The number of this app is ";
/// Digits of a number in a guest and in what it answers.
const DIGITS_COUNT: usize = 10;
/// The name of the custom section that makes other guests distinct.
const SECTION: &str = "bench-number";
/// The id of a custom section, in modules and in components.
const CUSTOM_SECTION: u8 = 0;
/// Files in a folder of images that may be there beside one for each app: images of
/// other apps that were served with the fleet, lists of the image store.
const OTHER_FILES_COUNT: usize = 16;
/// How often the making of a fleet reports progress, in apps.
const REPORT_COUNT: usize = 20_000;

/// A folder of apps made of one guest.
pub(crate) struct Fleet {
    folder: PathBuf,
    guest: Guest,
    count: usize,
}

impl Fleet {
    /// The fleet of `count` apps of a guest, made unless it is there: the numbers
    /// from 0.
    ///
    /// # Errors
    /// If the guest cannot be read or made distinct, or the disk refuses.
    pub(crate) fn make(guest: Guest, file: &Path, count: usize) -> Result<Self, Error> {
        let folder = peer::target_folder()?.join(FLEETS).join(format!("{}-{count}", guest.name()));
        let fleet = Self { folder, guest, count };
        let wasm = fs::read(file).map_err(Error::reading(file))?;
        // Written when all else is: a fleet that was interrupted is made again.
        let source = fleet.folder.join("source.wasm");
        if fs::read(&source).is_ok_and(|made_of| made_of == wasm) {
            return Ok(fleet);
        }
        progress(&format!("making {count} apps of `{}` in `{}`", guest.name(), fleet.folder.display()));
        remove(&fleet.folder)?;
        for number in 0..count {
            let folder = fleet.apps().join(fleet.host(number));
            write_app(&folder, &variant(guest, &wasm, number)?, "")?;
            if number % REPORT_COUNT == REPORT_COUNT - 1 {
                progress(&format!("{} apps", number + 1));
            }
        }
        fs::write(&source, &wasm).map_err(Error::writing(&source))?;
        Ok(fleet)
    }

    /// How many apps it has.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The folder of its apps, for `wisp serve --apps`.
    pub(crate) fn apps(&self) -> PathBuf {
        self.folder.join("apps")
    }

    /// Where its compiled images are kept.
    pub(crate) fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    /// The host of an app.
    pub(crate) fn host(&self, number: usize) -> String {
        format!("{}-{number:06}.bench.test", self.guest.key().replace('_', "-"))
    }

    /// What an app answers.
    pub(crate) fn expected(&self, number: usize) -> Expected {
        Expected { status: 200, body: body(self.guest, number) }
    }

    /// Removes images that were there before `since`, if there are more than the apps
    /// need: an engine that was built anew compiles all of them once more.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(crate) fn remove_old_images(&self, since: SystemTime) -> Result<(), Error> {
        let mut images = Vec::new();
        files(&self.images(), &mut images)?;
        if images.len() <= self.count + OTHER_FILES_COUNT {
            return Ok(());
        }
        for path in images {
            let modified = fs::metadata(&path).and_then(|facts| facts.modified());
            if modified.map_err(Error::reading(&path))? < since {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Reads every compiled image, so that all of them are in the page cache.
    ///
    /// # Errors
    /// If one cannot be read.
    pub(crate) fn warm_page_cache(&self) -> Result<(), Error> {
        let mut images = Vec::new();
        files(&self.images(), &mut images)?;
        for path in images {
            let mut file = fs::File::open(&path).map_err(Error::reading(&path))?;
            io::copy(&mut file, &mut io::sink()).map_err(Error::reading(&path))?;
        }
        Ok(())
    }
}

/// Removes all fleets.
///
/// # Errors
/// If the disk refuses.
pub(crate) fn clean() -> Result<(), Error> {
    let folder = peer::target_folder()?.join(FLEETS);
    progress(&format!("removing `{}`", folder.display()));
    remove(&folder)
}

/// What the variant of a guest with this number answers.
pub(crate) fn body(guest: Guest, number: usize) -> Vec<u8> {
    match guest {
        Guest::Tiny => digits(number),
        _ => guest.body().as_bytes().to_vec(),
    }
}

/// A guest that differs from all its variants with another number: the tiny one
/// answers the number, the others carry it in a section that is not run.
///
/// # Errors
/// If the tiny guest's number is not where it must be.
pub(crate) fn variant(guest: Guest, wasm: &[u8], number: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = wasm.to_vec();
    if guest == Guest::Tiny {
        let mut places = wasm.windows(SENTENCE.len()).enumerate().filter(|(_, window)| *window == SENTENCE);
        let start = match (places.next(), places.next()) {
            (Some((start, _)), None) => start + SENTENCE.len(),
            _ => return Err(Error::Usage("the tiny guest does not say its number once".to_owned())),
        };
        let place = bytes.get_mut(start..start + DIGITS_COUNT).unwrap_or_default();
        if place.len() != DIGITS_COUNT {
            return Err(Error::Usage("the tiny guest's number is cut off".to_owned()));
        }
        place.copy_from_slice(&digits(number));
    } else {
        let length = |text: &[u8]| u8::try_from(text.len()).unwrap_or(u8::MAX);
        let number = digits(number);
        let name_length = length(SECTION.as_bytes());
        // Both lengths are below 128, and so one byte each.
        bytes.extend([CUSTOM_SECTION, 1 + name_length + length(&number), name_length]);
        bytes.extend_from_slice(SECTION.as_bytes());
        bytes.extend_from_slice(&number);
    }
    Ok(bytes)
}

/// Writes an app of one component; `settings` are further lines of the component.
///
/// # Errors
/// If the disk refuses.
pub(crate) fn write_app(folder: &Path, wasm: &[u8], settings: &str) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(Error::writing(folder))?;
    let source = folder.join("app.wasm");
    fs::write(&source, wasm).map_err(Error::writing(&source))?;
    let manifest = folder.join("spin.toml");
    let text = format!(
        "spin_manifest_version = 2\n\n[application]\nname = \"bench\"\n\n\
         [[trigger.http]]\nroute = \"/...\"\ncomponent = \"app\"\n\n\
         [component.app]\nsource = \"app.wasm\"\n{settings}"
    );
    fs::write(&manifest, text).map_err(Error::writing(&manifest))
}

/// Makes `link` a symbolic link to `folder`, in one step, whatever it was before.
/// The link is made at `beside` first, which must be on the same file system.
///
/// # Errors
/// If the disk refuses.
pub(crate) fn point(link: &Path, folder: &Path, beside: &Path) -> Result<(), Error> {
    remove(beside)?;
    symlink(folder, beside).map_err(Error::writing(beside))?;
    fs::rename(beside, link).map_err(Error::writing(link))
}

/// Removes a file, a link or a folder with all that is in it, if it is there.
///
/// # Errors
/// If the disk refuses.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(cause) => Err(cause),
    };
    match result {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(Error::writing(path)(cause)),
        _ => Ok(()),
    }
}

/// Adds every file below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::reading(folder))? {
        let path = entry.map_err(Error::reading(folder))?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// A number as the tiny guest says it.
fn digits(number: usize) -> Vec<u8> {
    format!("{number:0DIGITS_COUNT$}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_variant_says_its_number_and_is_as_long() {
        let wasm = [&b"\0asm--"[..], SENTENCE, b"0000000000--"].concat();
        let made = variant(Guest::Tiny, &wasm, 4711).unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!(made, [&b"\0asm--"[..], SENTENCE, b"0000004711--"].concat());
        assert_eq!(body(Guest::Tiny, 4711), b"0000004711");
    }

    #[test]
    fn a_tiny_guest_without_one_place_for_its_number_is_refused() {
        let twice = [SENTENCE, b"0000000000", SENTENCE, b"0000000000"].concat();
        for wasm in [&b"\0asm"[..], SENTENCE, &twice] {
            assert!(variant(Guest::Tiny, wasm, 1).is_err());
        }
    }

    #[test]
    fn other_variants_carry_a_section_of_the_right_length() {
        let made = variant(Guest::RustP2, b"\0asm", 7).unwrap_or_else(|error| unreachable!("{error}"));
        let section = made.strip_prefix(b"\0asm").unwrap_or_default();
        assert_eq!(section.first(), Some(&CUSTOM_SECTION));
        assert_eq!(section.get(1).map(|&length| usize::from(length)), Some(section.len() - 2));
        assert!(section.ends_with(b"bench-number0000000007"));
    }

    #[test]
    fn a_link_is_replaced_in_one_step() {
        let folder = tempfile::tempdir().unwrap_or_else(|error| unreachable!("{error}"));
        let (link, beside) = (folder.path().join("link"), folder.path().join("beside"));
        for target in ["a", "b"] {
            let target = folder.path().join(target);
            assert!(write_app(&target, b"wasm", "").is_ok());
            assert!(point(&link, &target, &beside).is_ok());
            assert_eq!(fs::read_link(&link).ok(), Some(target));
        }
        assert!(!beside.exists());
        assert!(remove(&link).is_ok() && remove(&link).is_ok());
        assert!(folder.path().join("b/spin.toml").exists());
    }

    #[test]
    fn images_of_another_engine_go_once_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap_or_else(|error| unreachable!("{error}"));
        let fleet = Fleet { folder: folder.path().to_owned(), guest: Guest::Tiny, count: 2 };
        let images = fleet.images();
        assert!(fs::create_dir(&images).is_ok());
        let put = |count: usize| {
            (0..count).all(|index| fs::write(images.join(format!("{count}-{index}")), b"").is_ok())
        };
        let count = || fs::read_dir(fleet.images()).map(Iterator::count).unwrap_or(0);
        assert!(put(2) && put(OTHER_FILES_COUNT));
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        assert!(fleet.remove_old_images(later).is_ok() && count() == 2 + OTHER_FILES_COUNT);
        assert!(put(1) && fleet.remove_old_images(later).is_ok() && count() == 0);
    }
}
