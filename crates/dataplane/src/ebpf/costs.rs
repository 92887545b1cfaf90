//! What programs cost, as the kernel counts it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};

use super::pins::entries;
use super::site::PATH;
use super::{EbpfError, Site, path};

/// What the programs of a node did in a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Costs {
    /// How long it was looked at.
    pub during: Duration,
    /// By the names of the programs.
    pub programs: BTreeMap<String, Cost>,
}

/// What one of them did: all that is attached of it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// How often it ran.
    pub runs: u64,
    /// How long that took in all.
    pub time: Duration,
    /// Its machine code, in bytes.
    pub code: u32,
}

impl Cost {
    /// How long it ran on the average.
    pub fn each(&self) -> Option<Duration> {
        let nanoseconds = self.time.as_nanos().checked_div(u128::from(self.runs))?;
        Some(Duration::from_nanos(u64::try_from(nanoseconds).ok()?))
    }
}

/// Has the kernel count for so long; none where nothing of ours is pinned. It counts for all programs of the machine
/// meanwhile, which takes some 65 ns of each run.
pub fn costs(site: &Site, during: Duration) -> Result<Option<Costs>, EbpfError> {
    let directory = site.directory()?;
    if !directory.exists() {
        return Ok(None);
    }
    let programs = programs(site, &directory)?;
    let _counting = enable_stats(Stats::RunTime).map_err(|error| EbpfError::Uncounted(error.io_error))?;
    let begun = Instant::now();
    let before = infos(&programs);
    std::thread::sleep(during);
    let after = infos(&programs);
    let mut costs = Costs {
        during: begun.elapsed(),
        programs: BTreeMap::new(),
    };
    for (program, name) in &programs {
        // One that was replaced meanwhile has no end.
        let (Some(before), Some(after)) = (before.get(program), after.get(program)) else {
            continue;
        };
        let cost = costs.programs.entry(name.clone()).or_default();
        cost.runs += after.run_count() - before.run_count();
        cost.time += after.run_time() - before.run_time();
        cost.code = after.size_jitted();
    }
    Ok(Some(costs))
}

/// The numbers of those that are pinned, and what they are called.
fn programs(site: &Site, directory: &Path) -> Result<BTreeMap<u32, String>, EbpfError> {
    let mut programs = path::numbers(site)?;
    let others = entries(directory)?.into_iter().filter(|name| name != PATH);
    for hooks in others
        .map(|name| directory.join(name))
        .filter(|path| path.is_dir())
    {
        for hook in entries(&hooks)? {
            let path = hooks.join(&hook);
            let failed = |error: &dyn std::error::Error| EbpfError::At {
                path: path.clone(),
                source: std::io::Error::other(super::chain(error)),
            };
            let link = FdLink::from(PinnedLink::from_pin(&path).map_err(|error| failed(&error))?);
            let program = link.info().map_err(|error| failed(&error))?.program_id();
            programs.insert(program, hook);
        }
    }
    Ok(programs)
}

fn infos(programs: &BTreeMap<u32, String>) -> BTreeMap<u32, ProgramInfo> {
    // One that went while it was looked up is somebody else's, or was replaced.
    let infos = loaded_programs().flatten().map(|info| (info.id(), info));
    infos
        .filter(|(program, _)| programs.contains_key(program))
        .collect()
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "in {:.1} s:", self.during.as_secs_f64())?;
        let width = self.programs.keys().map(String::len).max().unwrap_or_default();
        for (name, cost) in &self.programs {
            let Cost { runs, code, .. } = cost;
            write!(f, "{name:<width$}  {runs:>10} runs")?;
            match cost.each() {
                Some(each) => write!(f, "  {:>6} ns each", each.as_nanos())?,
                None => write!(f, "  {:>6}        ", "")?,
            }
            writeln!(f, "  {code:>6} bytes of code")?;
        }
        Ok(())
    }
}
