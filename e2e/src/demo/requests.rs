//! Steps 11 to 17: a waypoint, and what the pages in `docs/tasks` do with it.

use super::Stage;
use crate::tasks;
use crate::telling::Evidence;

pub(super) fn waypoint(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    tasks::bind(&mut stage.town, seen)
}

pub(super) fn canary(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    tasks::canary(&mut stage.town, seen)
}

pub(super) fn retries(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    tasks::retries(&mut stage.town, seen)
}

pub(super) fn mirroring(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    tasks::mirroring(&mut stage.town, seen)
}

pub(super) fn tokens(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    tasks::tokens(&mut stage.town, seen)
}

pub(super) fn limits(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    tasks::limits(&mut stage.town, seen)
}

pub(super) fn counted(stage: &mut Stage, seen: &mut Evidence<'_>) -> anyhow::Result<()> {
    tasks::counted(&mut stage.town, seen)
}
