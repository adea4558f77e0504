//! Files whose text the kernel makes as it is read: procfs, sysfs and cgroups.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// As `std::fs::read_to_string`, which asks such a file for its size, is told 0, and begins with 32 bytes: 11 calls
/// for a mountinfo of half a page that are 4 here.
pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    read_open(open(path.as_ref())?)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The same of a file that the kernel makes in one piece, one value or one process's: the first read has it all.
pub fn read_value(path: impl AsRef<Path>) -> io::Result<String> {
    let file = open(path.as_ref())?;
    let mut text = Vec::with_capacity(4096);
    rustix::io::retry_on_intr(|| rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)))?;
    if text.len() == text.capacity() {
        return read(path);
    }
    text.shrink_to_fit();
    utf8(text)
}

pub fn read_open(file: impl AsFd) -> io::Result<String> {
    utf8(read_bytes(file)?)
}

/// Names of files need not be UTF-8.
pub fn read_bytes(file: impl AsFd) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(4096);
    loop {
        match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text)) {
            Ok(0) => {
                text.shrink_to_fit();
                return Ok(text);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if text.len() == text.capacity() {
            text.reserve(text.len());
        }
    }
}

fn utf8(text: Vec<u8>) -> io::Result<String> {
    String::from_utf8(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_length_is_read_whole() {
        let text = "0123456789abcde\n".repeat(2000);
        let file = tempfile::NamedTempFile::new().unwrap();
        for length in [0, 1, 4095, 4096, 4097, text.len()] {
            std::fs::write(file.path(), &text[..length]).unwrap();
            assert_eq!(read(file.path()).unwrap(), text[..length]);
            assert_eq!(read_value(file.path()).unwrap(), text[..length]);
        }
        assert_eq!(read("/nowhere").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(read("/proc/self/status").unwrap().contains("CapBnd:"));
    }
}
