//! `cargo xtask extension`: the extension for Visual Studio Code, as a file to install.
//!
//! A `.vsix` is a ZIP archive with two more files than the extension itself. It is written
//! here, without compression and with one date for everything, so that the same sources
//! make the same file, byte for byte.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::chore::{Chore, Failure, Result, at, say};

/// What of `editors/vscode` belongs into it, and the schemas from `docs`.
const FILES: [(&str, &str); 5] = [
    ("editors/vscode/package.json", "extension/package.json"),
    ("editors/vscode/snippets/spin.json", "extension/snippets/spin.json"),
    ("editors/vscode/snippets/tests.json", "extension/snippets/tests.json"),
    ("docs/spin-toml.schema.json", "extension/spin-toml.schema.json"),
    ("docs/tests-toml.schema.json", "extension/tests-toml.schema.json"),
];

/// What the endings of its files mean.
const CONTENT_TYPES: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
  <Default Extension=".json" ContentType="application/json"/>
  <Default Extension=".vsixmanifest" ContentType="text/xml"/>
</Types>
"#;

/// 1 January 1980, the first day that the format knows.
const DATE: u16 = 0x21;

/// What `package.json` says about the extension.
#[derive(Deserialize)]
struct Package {
    name: String,
    #[serde(rename = "displayName")]
    display_name: String,
    description: String,
    version: String,
    publisher: String,
    engines: Engines,
    #[serde(rename = "extensionDependencies")]
    dependencies: Vec<String>,
}

#[derive(Deserialize)]
struct Engines {
    vscode: String,
}

/// `cargo xtask extension`.
pub(crate) fn run(chore: &Chore) -> Result<()> {
    let mut files = Vec::new();
    for (from, to) in FILES {
        let path = chore.root.join(from);
        files.push((to, fs::read(&path).map_err(at(&path))?));
    }
    let package: Package = serde_json::from_slice(&files[0].1)
        .map_err(|error| Failure::new(format!("`{}`: {error}", FILES[0].0)))?;
    let name = format!("{}-{}.vsix", package.name, package.version);
    files.push(("extension.vsixmanifest", package.manifest().into_bytes()));
    files.push(("[Content_Types].xml", CONTENT_TYPES.into()));
    let path = chore.target.join(name);
    fs::create_dir_all(&chore.target).map_err(at(&chore.target))?;
    write(&path, &files)?;
    say(&format!("install it with `code --install-extension {}`", path.display()));
    Ok(())
}

fn write(path: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let archive = archive(files).ok_or_else(|| Failure::new("the extension is too large"))?;
    fs::write(path, archive).map_err(at(path))
}

impl Package {
    fn manifest(&self) -> String {
        format!(
            r#"<?xml version="1.0" encoding="utf-8"?>
<PackageManifest Version="2.0.0" xmlns="http://schemas.microsoft.com/developer/vsx-schema/2011">
  <Metadata>
    <Identity Language="en-US" Id="{}" Version="{}" Publisher="{}"/>
    <DisplayName>{}</DisplayName>
    <Description xml:space="preserve">{}</Description>
    <Properties>
      <Property Id="Microsoft.VisualStudio.Code.Engine" Value="{}"/>
      <Property Id="Microsoft.VisualStudio.Code.ExtensionDependencies" Value="{}"/>
    </Properties>
  </Metadata>
  <Installation><InstallationTarget Id="Microsoft.VisualStudio.Code"/></Installation>
  <Dependencies/>
  <Assets>
    <Asset Type="Microsoft.VisualStudio.Code.Manifest" Path="extension/package.json" Addressable="true"/>
  </Assets>
</PackageManifest>
"#,
            escaped(&self.name),
            escaped(&self.version),
            escaped(&self.publisher),
            escaped(&self.display_name),
            escaped(&self.description),
            escaped(&self.engines.vscode),
            escaped(&self.dependencies.join(",")),
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// A ZIP archive of these files, stored as they are; `None` beyond four gigabytes.
fn archive(files: &[(&str, Vec<u8>)]) -> Option<Vec<u8>> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let start = u32::try_from(archive.len()).ok()?;
        let size = u32::try_from(content.len()).ok()?;
        let mut facts = Vec::new();
        // Needs version 1.0; no flags; stored; time and date.
        for value in [10, 0, 0, 0, DATE] {
            facts.extend(value.to_le_bytes());
        }
        for value in [crc32(content), size, size] {
            facts.extend(value.to_le_bytes());
        }
        facts.extend(u16::try_from(name.len()).ok()?.to_le_bytes());
        // Nothing beside what is above.
        facts.extend([0; 2]);
        archive.extend(b"PK\x03\x04");
        archive.extend(&facts);
        archive.extend(name.as_bytes());
        archive.extend(content);
        directory.extend(b"PK\x01\x02");
        directory.extend(10_u16.to_le_bytes());
        directory.extend(&facts);
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = u32::try_from(archive.len()).ok()?;
    let count = u16::try_from(files.len()).ok()?;
    archive.extend(&directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    archive.extend(u32::try_from(directory.len()).ok()?.to_le_bytes());
    archive.extend(start.to_le_bytes());
    archive.extend([0; 2]);
    Some(archive)
}

/// The checksum of the format.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |checksum, byte| {
        (0..8).fold(checksum ^ u32::from(*byte), |checksum, _| {
            if checksum & 1 == 1 { (checksum >> 1) ^ 0xedb8_8320 } else { checksum >> 1 }
        })
    })
}

#[cfg(test)]
mod unit_tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::process::Command;

    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_format() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn others_can_read_the_archive() {
        let files = [("one.txt", b"one".to_vec()), ("two/three.json", b"{}".to_vec())];
        let packed = archive(&files).unwrap();
        assert_eq!(archive(&files).unwrap(), packed);
        let path = std::env::temp_dir().join(format!("wisp-extension-{}.zip", std::process::id()));
        fs::write(&path, packed).unwrap();
        let program = "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None; \
                       print([(n, z.read(n).decode()) for n in z.namelist()])";
        let output = Command::new("python3").args(["-c", program]).arg(&path).output();
        fs::remove_file(&path).unwrap();
        // Every machine that builds guests has Python.
        let Ok(output) = output else { return };
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(text.trim(), "[('one.txt', 'one'), ('two/three.json', '{}')]", "{output:?}");
    }
}
