//! AppArmor profiles. A native workload gets its profile by its execve; one that runs in this process must change
//! over now, or it would be unconfined although config.json names a profile. SELinux labels are refused by `bundle`.

use std::io::Write;

use anyhow::{Context, Result};
use oci_spec::runtime::Process;
use pathrs::flags::OpenFlags;
use pathrs::procfs::{ProcfsBase, ProcfsHandle};

pub fn apply(process: &Process, in_process: bool) -> Result<()> {
    let Some(profile) = process.apparmor_profile().as_deref().filter(|profile| !profile.is_empty()) else {
        return Ok(());
    };
    let context = || format!("process.apparmorProfile: apply {profile}");
    if !in_process {
        return libcontainer::apparmor::apply_profile(profile).with_context(context);
    }
    let proc = ProcfsHandle::new().context("open a procfs")?;
    // CVE-2019-16884, CVE-2025-52881: through a procfs that is known to be one.
    let open = |path| proc.open(ProcfsBase::ProcThreadSelf, path, OpenFlags::O_WRONLY);
    let mut file = open("attr/apparmor/current").or_else(|_| open("attr/current")).with_context(context)?;
    file.write_all(format!("changeprofile {profile}").as_bytes()).with_context(context)
}
