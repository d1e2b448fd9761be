//! What nobody needs any more, and what is kept.
//!
//! The policy says how many releases of an app are kept (`quotas.kept_releases`): those that
//! served last, besides the one that serves, and as many that failed. Each operation forgets
//! what is beyond as it ends; here the same is done for all apps, since the policy may have
//! changed. What the releases that are left are made of is needed, and the machine removes the
//! rest: see [`Platform::collect_garbage`](crate::Platform::collect_garbage).
//!
//! Nothing is removed that a deploy relies on: what somebody pushed, asked for or deployed
//! lately stays, whether a release is made of it yet or not. How late that is, the machine knows.

use std::collections::{BTreeMap, HashSet};

use crate::{
    control::Control,
    error::Result,
    model::{GarbageItem, GarbageKind, GarbageReport, GarbageTotal},
    names::{AppId, TeamName},
    platform::Kept,
};

/// Items of a report. All are counted.
const MAX_ITEMS_COUNT: usize = 1_000;

impl Control {
    /// Removes what nobody needs any more, or only says what that is.
    ///
    /// # Errors
    /// When the state or the machine does not work.
    pub async fn collect_garbage(&self, is_only_asked: bool) -> Result<GarbageReport> {
        // Twice at once would find the same.
        let _alone = self.collecting.lock().await;
        let policy = self.policy();
        let kept_count = move |team: &TeamName| policy.of(team).quotas().kept_releases;
        let surplus = self.state.surplus_releases(kept_count).await?;
        let mut items = Vec::new();
        let mut going = HashSet::new();
        let mut apps: BTreeMap<AppId, _> = BTreeMap::new();
        for (app, number) in surplus {
            if is_only_asked {
                items.push(release_item(&app.to_string(), number));
                going.insert((app.id, number));
            } else {
                apps.insert(app.id, app);
            }
        }
        for (id, app) in apps {
            // Looked at again: an operation may have begun that is about one of them.
            let kept_count = self.policy_of(&app.team).quotas().kept_releases;
            let gone = self.state.forget_surplus(id, kept_count).await?;
            items.extend(gone.into_iter().map(|number| release_item(&app.to_string(), number)));
        }
        // Read once the releases are gone: whoever goes back to one of the others finds all of it.
        let kept = Kept { images: self.state.images(going).await?, teams: self.state.team_names().await? };
        items.extend(self.platform.collect_garbage(&kept, is_only_asked).await?);
        Ok(report(items, !is_only_asked))
    }
}

fn release_item(app: &str, number: impl std::fmt::Display) -> GarbageItem {
    GarbageItem { kind: GarbageKind::Release, name: format!("{app} {number}"), bytes: 0 }
}

fn report(items: Vec<GarbageItem>, is_removed: bool) -> GarbageReport {
    let mut by_kind: BTreeMap<GarbageKind, Vec<GarbageItem>> = BTreeMap::new();
    for item in items {
        by_kind.entry(item.kind).or_default().push(item);
    }
    let total = |(kind, items): (&GarbageKind, &Vec<GarbageItem>)| GarbageTotal {
        kind: *kind,
        count: items.len() as u64,
        bytes: items.iter().map(|item| item.bytes).sum(),
    };
    let totals: Vec<GarbageTotal> = by_kind.iter().map(total).collect();
    // As many of each kind as there is room for.
    let of_each = MAX_ITEMS_COUNT / by_kind.len().max(1);
    let items = by_kind.into_values().flat_map(|items| items.into_iter().take(of_each)).collect();
    GarbageReport { is_removed, bytes: totals.iter().map(|total| total.bytes).sum(), totals, items }
}
