//! What processes and the machine have used so far, from `/proc`.

use std::{fs, io, ops::Sub};

use nix::unistd::{SysconfVar, sysconf};

/// CPU time, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// In the program itself.
    pub user: f64,
    /// In the kernel, on its behalf.
    pub system: f64,
}

impl Cpu {
    /// Both.
    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { user: self.user - before.user, system: self.system - before.system }
    }
}

impl std::iter::Sum for Cpu {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            user: sum.user + part.user,
            system: sum.system + part.system,
        })
    }
}

/// Memory, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Its share of what it has in memory: pages shared by n processes count 1/n.
    pub pss: f64,
    /// All that it has in memory.
    pub rss: f64,
    /// Its own pages that are in no file: heap and stacks.
    pub anonymous: f64,
}

/// A count as a number to reckon with.
#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}

/// As [`float`].
pub fn float_of(count: usize) -> f64 {
    float(u64::try_from(count).unwrap_or(u64::MAX))
}

fn ticks_per_second() -> f64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| i32::try_from(ticks).ok());
    f64::from(ticks.unwrap_or(100))
}

/// What process `pid` has used: utime and stime, fields 14 and 15 of its `stat`.
pub fn cpu(pid: i32) -> io::Result<Cpu> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, which may contain anything.
    let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    let field = |at: usize| after.split(' ').nth(at).and_then(|text| text.parse().ok()).unwrap_or_default();
    let ticks = ticks_per_second();
    Ok(Cpu { user: float(field(11)) / ticks, system: float(field(12)) / ticks })
}

/// What this process has used.
pub fn own_cpu() -> io::Result<Cpu> {
    cpu(nix::unistd::getpid().as_raw())
}

/// What the whole machine has used: everything but idling and waiting for disks.
pub fn machine() -> io::Result<Cpu> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|text| text.parse().ok()).collect();
    let field = |at: usize| float(fields.get(at).copied().unwrap_or_default()) / ticks_per_second();
    // user nice system idle iowait irq softirq steal
    Ok(Cpu { user: field(0) + field(1), system: field(2) + field(5) + field(6) })
}

/// What process `pid` has in memory.
pub fn memory(pid: i32) -> io::Result<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_end_matches("kB").trim().parse().map(float).unwrap_or_default()
    };
    Ok(Memory { pss: line("Pss:"), rss: line("Rss:"), anonymous: line("Anonymous:") })
}

/// How often the threads of process `pid` went to sleep of their own will, and so were woken.
pub fn sleeps(pid: i32) -> io::Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends meanwhile takes its count along.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += count.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let before = own_cpu().unwrap();
        let whole = machine().unwrap();
        let start = std::time::Instant::now();
        while (own_cpu().unwrap() - before).total() < 0.05 {
            assert!(start.elapsed().as_secs() < 20);
        }
        assert!((machine().unwrap() - whole).total() >= 0.04);
        let memory = memory(nix::unistd::getpid().as_raw()).unwrap();
        assert!(memory.rss >= memory.pss && memory.pss > 100.0, "{memory:?}");
    }
}
