//! crun's id mappings inside the option (`idmap=uids=0-1000-10#10-2000-5;gids=@0-0-10`, crun(1) "idmap mount options"),
//! turned into what the specification has for it: the mount's own mappings and the bare word. Judges nothing else.

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

type Maps<'a> = (&'a [LinuxIdMapping], &'a [LinuxIdMapping]);

/// `container` are the mappings of the container's user namespace, for triplets that are relative to it.
pub fn settle(mount: &mut Mount, container: Maps<'_>) -> Result<()> {
    let Some(words) = mount.options() else { return Ok(()) };
    let inline = |word: &String| word.starts_with("idmap=") || word.starts_with("ridmap=");
    let Some(at) = words.iter().position(inline) else { return Ok(()) };
    let mut words = words.clone();
    let word = words[at].clone();
    let (name, text) = word.split_once('=').unwrap_or_default();
    words[at] = name.to_owned();
    let (uids, gids) = parse(text, container).with_context(|| format!("option {word:?}"))?;
    mount.set_options(Some(words));
    // As in crun: mappings in the specification's own words count for more.
    if mount.uid_mappings().as_ref().is_none_or(Vec::is_empty) && !uids.is_empty() {
        mount.set_uid_mappings(Some(uids));
    }
    if mount.gid_mappings().as_ref().is_none_or(Vec::is_empty) && !gids.is_empty() {
        mount.set_gid_mappings(Some(gids));
    }
    Ok(())
}

fn parse(text: &str, container: Maps<'_>) -> Result<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>)> {
    let (mut uids, mut gids) = (Vec::new(), Vec::new());
    for part in text.split(';').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("uids", list)) => uids = triplets(list, container.0)?,
            Some(("gids", list)) => gids = triplets(list, container.1)?,
            _ => bail!("{part:?} is neither uids= nor gids="),
        }
    }
    Ok((uids, gids))
}

/// First id of the file system, first id of the host, number of ids. After an `@` the second is an id of the container.
fn triplets(list: &str, container: &[LinuxIdMapping]) -> Result<Vec<LinuxIdMapping>> {
    let one = |text: &str| {
        let relative = text.strip_prefix('@');
        let numbers: Option<Vec<u32>> =
            relative.unwrap_or(text).split('-').map(|number| number.parse().ok()).collect();
        let Some([inside, mut host, size]) = numbers.as_deref().and_then(|n| <[u32; 3]>::try_from(n).ok())
        else {
            bail!("{text:?} is not a mapping like 0-1000-10");
        };
        if relative.is_some() {
            host = on_host(host, container).with_context(|| format!("relative mapping {text:?}"))?;
        }
        Ok(LinuxIdMappingBuilder::default().container_id(inside).host_id(host).size(size).build()?)
    };
    list.split('#').filter(|text| !text.is_empty()).map(one).collect()
}

fn on_host(id: u32, container: &[LinuxIdMapping]) -> Result<u32> {
    ensure!(!container.is_empty(), "without user namespace mappings");
    let within = |map: &&LinuxIdMapping| id.checked_sub(map.container_id()).is_some_and(|by| by < map.size());
    let map = container.iter().find(within).context("the container's user namespace does not map it")?;
    map.host_id().checked_add(id - map.container_id()).context("beyond the last id")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settled(word: &str, container: Value) -> Result<Value, String> {
        let mut mount: Mount =
            serde_json::from_value(json!({"destination": "/x", "options": ["bind", word]})).unwrap();
        let container: Vec<LinuxIdMapping> = serde_json::from_value(container).unwrap();
        settle(&mut mount, (&container, &container)).map_err(|error| format!("{error:#}"))?;
        Ok(serde_json::to_value(mount).unwrap())
    }

    fn map(inside: u32, host: u32, size: u32) -> Value {
        json!({"containerID": inside, "hostID": host, "size": size})
    }

    #[test]
    fn the_example_of_crun_s_manual() {
        let container = json!([map(0, 0, 1), map(1, 2, 1000)]);
        let got = settled("idmap=uids=@1-3-10#10-11-10;gids=0-100-10", container).unwrap();
        assert_eq!(got["options"], json!(["bind", "idmap"]));
        assert_eq!(got["uidMappings"], json!([map(1, 4, 10), map(10, 11, 10)]));
        assert_eq!(got["gidMappings"], json!([map(0, 100, 10)]));
    }

    #[test]
    fn nothing_after_the_sign_means_the_container_s_own() {
        for word in ["idmap=", "ridmap=", "idmap"] {
            let got = settled(word, json!([])).unwrap();
            assert_eq!(got["options"][1], word.trim_end_matches('='));
            assert!(got["uidMappings"].is_null());
        }
    }

    #[test]
    fn what_is_no_mapping() {
        for (word, want) in [
            ("idmap=uids=0-1", "\"0-1\" is not a mapping"),
            ("idmap=uids=0-1-x", "\"0-1-x\" is not a mapping"),
            ("ridmap=uids=0-1-4294967296", "is not a mapping"),
            ("idmap=users=0-1-2", "neither uids= nor gids="),
            ("idmap=uids=@5-5-1", "relative mapping \"@5-5-1\": without user namespace mappings"),
        ] {
            let error = settled(word, json!([])).unwrap_err();
            assert!(error.starts_with(&format!("option {word:?}: ")) && error.contains(want), "{error}");
        }
        let error = settled("idmap=uids=@0-7-1", json!([map(0, 100, 5)])).unwrap_err();
        assert!(error.contains("does not map it"), "{error}");
    }
}
