//! For unit tests: limits as text, and a directory tree that stands for a hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use oci_spec::runtime::LinuxResources;

use super::limits::Write;

/// `v1::writes` or `v2::writes`.
type Writes = fn(&LinuxResources) -> Result<Vec<Write>>;

/// What is written for these resources: `field file=value`.
pub fn list(writes: Writes, resources: &str) -> Vec<String> {
    let writes = writes(&serde_json::from_str(resources).unwrap()).unwrap();
    writes.iter().map(|w| format!("{} {}={}", w.field, w.file, w.value)).collect()
}

/// Why these resources cannot be.
pub fn refused(writes: Writes, resources: &str) -> String {
    writes(&serde_json::from_str(resources).unwrap()).unwrap_err().to_string()
}

pub struct TempTree(PathBuf);

impl TempTree {
    pub fn new(files: &[(&str, &str)]) -> TempTree {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tree =
            TempTree(std::env::temp_dir().join(format!("runw-cgroup-{}-{number}", std::process::id())));
        fs::create_dir_all(&tree.0).unwrap();
        for (name, text) in files {
            let path = tree.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        tree
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }
}

impl Drop for TempTree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
