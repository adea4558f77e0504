//! `runw list`: every container under the root, as a table, JSON or bare ids. A container whose state cannot be
//! read is warned about and left out; it never hides the others.

use anyhow::{Result, bail};

use super::Globals;
use crate::log;
use crate::seam::Status;
use crate::state::{Document, Entry};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Display only container ids
    #[arg(short, long)]
    pub quiet: bool,
}

pub fn run(args: Args, globals: &Globals) -> Result<u8> {
    let ids = globals.root.ids()?;
    if args.quiet {
        super::print(&ids.iter().fold(String::new(), |out, id| out + id + "\n"))?;
        return Ok(0);
    }
    let found: Vec<(Entry, Status)> = ids.iter().filter_map(|id| readable(globals, id)).collect();
    let documents: Vec<Document<'_>> =
        found.iter().map(|(entry, status)| entry.record.document(*status)).collect();
    let text = match args.format.as_str() {
        "table" => table(&documents),
        // Go marshals an empty slice that was never allocated as null, and callers have learnt to read that.
        "json" if documents.is_empty() => "null\n".to_owned(),
        "json" => super::go_json(&serde_json::to_string(&documents)?) + "\n",
        _ => bail!("invalid format option"),
    };
    super::print(&text)?;
    Ok(0)
}

fn readable(globals: &Globals, id: &str) -> Option<(Entry, Status)> {
    match globals.root.load(id) {
        Ok(entry) => {
            let status = super::common::status(&entry).unwrap_or(Status::Stopped);
            Some((entry, status))
        }
        Err(error) => {
            // Deleted since the directory was read is not worth a word.
            if error.to_string() != crate::state::NOT_EXIST {
                log::warn(&format!("container {id}: {}", crate::error::line(&error)));
            }
            None
        }
    }
}

/// Go's tabwriter with runc's parameters: cells at least 12 wide with three spaces of padding.
fn table(documents: &[Document<'_>]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    rows.extend(documents.iter().map(|d| {
        let bundle = d.bundle.display().to_string();
        [d.id.into(), d.pid.to_string(), d.status.as_str().into(), bundle, d.created.into(), d.owner.clone()]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count() + 3).fold(12, usize::max);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            out.push_str(&format!("{cell:<width$}"));
        }
        out.push_str(&row[5]);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Record;

    #[test]
    fn table_is_runcs() {
        // The first line is copied from runc 1.1.5.
        let head = "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n";
        assert_eq!(table(&[]), head);
        let record = Record { bundle: "/b".into(), created: "t".into(), ..Record::new("a-very-long-name") };
        let lines = table(&[record.document(Status::Stopped)]);
        assert!(lines.starts_with("ID                 PID         STATUS"), "{lines}");
        assert!(
            lines.contains("\na-very-long-name   0           stopped     /b          t           "),
            "{lines}"
        );
    }
}
