//! What this build was made with on the Linux side, for `--version` and `features`.

/// The linked libseccomp.
pub fn libseccomp_version() -> String {
    libseccomp::ScmpVersion::current().map_or_else(|_| "unknown".into(), |version| version.to_string())
}

/// Whether capabilities of this name exist (capabilities(7)), whatever the running kernel knows.
pub fn capability_names() -> Vec<String> {
    let mut all: Vec<caps::Capability> = caps::all().into_iter().collect();
    all.sort_by_key(|cap| cap.index());
    all.iter().map(ToString::to_string).collect()
}
