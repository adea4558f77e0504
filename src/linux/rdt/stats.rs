//! What a resctrl group has used and may use, in the keys of runc's `types/events.go`. Must not write.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::Rdt;

/// Empty where `linux.intelRdt` is not asked for, as runc prints it.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_info: Option<Cache>,
    #[serde(skip_serializing_if = "String::is_empty")]
    l3_cache_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    l3_cache_schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_info: Option<Bandwidth>,
    #[serde(skip_serializing_if = "String::is_empty")]
    mem_bw_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    mem_bw_schema: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mbm_stats: Option<Vec<Moved>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmt_stats: Option<Vec<Held>>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Cache {
    cbm_mask: String,
    min_cbm_bits: u64,
    num_closids: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Bandwidth {
    bandwidth_gran: u64,
    #[serde(skip_serializing_if = "super::super::cgroup::zero")]
    delay_linear: u64,
    min_bandwidth: u64,
    num_closids: u64,
}

/// Of one node, as the next.
#[derive(Debug, PartialEq, Serialize)]
struct Moved {
    #[serde(skip_serializing_if = "super::super::cgroup::zero")]
    mbm_total_bytes: u64,
    #[serde(skip_serializing_if = "super::super::cgroup::zero")]
    mbm_local_bytes: u64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Held {
    #[serde(skip_serializing_if = "super::super::cgroup::zero")]
    llc_occupancy: u64,
}

impl Rdt<'_> {
    pub fn stats(&self) -> Result<Stats> {
        let info = |name: &str| self.root.join("info").join(name);
        let mut stats = Stats::default();
        let (all, own) = (text(&self.root.join("schemata"))?, text(&self.group().join("schemata"))?);
        let cache = info("L3");
        if cache.is_dir() {
            stats.l3_cache_info = Some(Cache {
                cbm_mask: text(&cache.join("cbm_mask"))?,
                min_cbm_bits: number(&cache.join("min_cbm_bits"))?,
                num_closids: number(&cache.join("num_closids"))?,
            });
            stats.l3_cache_schema_root = line(&all, "L3");
            stats.l3_cache_schema = line(&own, "L3");
        }
        let bandwidth = info("MB");
        if bandwidth.is_dir() {
            stats.mem_bw_info = Some(Bandwidth {
                bandwidth_gran: number(&bandwidth.join("bandwidth_gran"))?,
                delay_linear: number(&bandwidth.join("delay_linear"))?,
                min_bandwidth: number(&bandwidth.join("min_bandwidth"))?,
                num_closids: number(&bandwidth.join("num_closids"))?,
            });
            stats.mem_bw_schema_root = line(&all, "MB");
            stats.mem_bw_schema = line(&own, "MB");
        }
        self.monitored(&mut stats)?;
        Ok(stats)
    }

    /// A monitoring group of its own counts the container alone.
    fn monitored(&self, stats: &mut Stats) -> Result<()> {
        let features = super::mon_features(&self.root);
        let has = |feature: &str| features.lines().any(|line| line == feature);
        let (total, local, held) = (has("mbm_total_bytes"), has("mbm_local_bytes"), has("llc_occupancy"));
        if !(total || local || held) {
            return Ok(());
        }
        let data = self.monitoring().unwrap_or_else(|| self.group()).join("mon_data");
        let context = || format!("read {}", data.display());
        let nodes = fs::read_dir(&data).with_context(context)?;
        let mut nodes =
            nodes.map(|node| Ok(node?.path())).collect::<Result<Vec<_>>>().with_context(context)?;
        nodes.sort();
        let (mut moved, mut kept) = (Vec::new(), Vec::new());
        for node in nodes {
            let count = |has: bool, file: &str| if has { number(&node.join(file)) } else { Ok(0) };
            moved.push(Moved {
                mbm_total_bytes: count(total, "mbm_total_bytes")?,
                mbm_local_bytes: count(local, "mbm_local_bytes")?,
            });
            kept.push(Held { llc_occupancy: count(held, "llc_occupancy")? });
        }
        stats.mbm_stats = (total || local).then_some(moved);
        stats.cmt_stats = held.then_some(kept);
        Ok(())
    }
}

fn text(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn number(path: &Path) -> Result<u64> {
    text(path)?.parse().with_context(|| format!("read {}", path.display()))
}

/// The last line that names the resource, as runc takes it.
fn line(schemata: &str, resource: &str) -> String {
    schemata.lines().rfind(|line| line.contains(resource)).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_keys_are_runcs() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("schemata", "    L3:0=fffff\n    MB:0= 100\n"),
            ("c1/schemata", "    L3:0=00ff\n    MB:0=  20\n"),
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3/min_cbm_bits", "1\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/MB/bandwidth_gran", "10\n"),
            ("info/MB/delay_linear", "1\n"),
            ("info/MB/min_bandwidth", "10\n"),
            ("info/MB/num_closids", "8\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n"),
            ("c1/mon_data/mon_L3_00/llc_occupancy", "123\n"),
            ("c1/mon_data/mon_L3_00/mbm_total_bytes", "9000\n"),
            ("c1/mon_data/mon_L3_00/mbm_local_bytes", "8000\n"),
            ("c1/mon_data/mon_L3_01/llc_occupancy", "0\n"),
            ("c1/mon_data/mon_L3_01/mbm_total_bytes", "7\n"),
            ("c1/mon_data/mon_L3_01/mbm_local_bytes", "0\n"),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let wanted = serde_json::from_value(json!({})).unwrap();
        let rdt = Rdt { id: "c1", wanted: &wanted, root: dir.path().to_owned() };
        let want = r#"{"l3_cache_info":{"cbm_mask":"fffff","min_cbm_bits":1,"num_closids":16},"l3_cache_schema_root":"L3:0=fffff","l3_cache_schema":"L3:0=00ff","mem_bw_info":{"bandwidth_gran":10,"delay_linear":1,"min_bandwidth":10,"num_closids":8},"mem_bw_schema_root":"MB:0= 100","mem_bw_schema":"MB:0=  20","mbm_stats":[{"mbm_total_bytes":9000,"mbm_local_bytes":8000},{"mbm_total_bytes":7}],"cmt_stats":[{"llc_occupancy":123},{}]}"#;
        assert_eq!(serde_json::to_string(&rdt.stats().unwrap()).unwrap(), want);

        fs::remove_dir_all(dir.path().join("info")).unwrap();
        assert_eq!(rdt.stats().unwrap(), Stats::default());
        assert_eq!(serde_json::to_string(&Stats::default()).unwrap(), "{}");
    }
}
