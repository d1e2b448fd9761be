//! The `http` bench: what a request costs on each server.

use std::collections::BTreeMap;

use crate::contest::{Contest, Groups, Kind, Measurement, Options, Results, ratio};
use crate::error::Error;
use crate::guest::Guest;
use crate::report::Target;

/// The guests, in the order of the tables.
const GUESTS: [Guest; 3] = [Guest::RustP2, Guest::RustP3, Guest::JavaScript];

/// What the figures are to be.
const TARGETS: [(&str, Target); 7] = [
    ("accounting_cost", Target::AtMost(1.05)),
    ("rust_p2_fresh_cpu_over_native", Target::AtMost(3.0)),
    ("rust_p2_reused_cpu_over_native", Target::AtMost(1.7)),
    ("rust_p3_fresh_cpu_over_native", Target::AtMost(4.5)),
    ("rust_p3_reused_cpu_over_native", Target::AtMost(2.2)),
    ("wasmtime_serve_cpu_over_fresh", Target::AtLeast(4.0)),
    ("wasmtime_serve_tuned_cpu_over_fresh", Target::AtLeast(1.5)),
];

/// What accounting is measured against.
const UNACCOUNTED: Kind = Kind::Wisp { reused: false, unaccounted: true };

/// Runs the bench.
///
/// # Errors
/// As every contest.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let contest =
        Contest { name: "http", title: "What a request costs", groups: groups(), ratios, targets: &TARGETS };
    contest.run(options)
}

/// The ways of serving each guest, in the order of the tables.
fn groups() -> Groups {
    let wisp = |reused| Kind::Wisp { reused, unaccounted: false };
    let wasmtime = |tuned, reused| Kind::Wasmtime { tuned, reused };
    let ways = |guest| match guest {
        // An instance of this guest refuses a second request.
        Guest::JavaScript => {
            vec![Kind::Native, wisp(false), Kind::WispNew, wasmtime(false, false), wasmtime(true, false)]
        }
        _ => vec![
            Kind::Native,
            wisp(false),
            wisp(true),
            wasmtime(false, false),
            wasmtime(true, false),
            wasmtime(false, true),
            wasmtime(true, true),
        ],
    };
    let mut groups = GUESTS.map(|guest| (guest, ways(guest))).to_vec();
    // Beside what it is compared with: what accounting costs is a few percent.
    for (_, kinds) in groups.iter_mut().filter(|(guest, _)| *guest == Guest::RustP2) {
        kinds.insert(2, Kind::WispNew);
        kinds.insert(2, UNACCOUNTED);
    }
    // As `wasmtime serve` has it.
    for (_, kinds) in groups.iter_mut().filter(|(guest, _)| *guest != Guest::JavaScript) {
        let place = kinds.iter().position(|kind| *kind == wisp(true)).map_or(kinds.len(), |place| place + 1);
        let plain = [false, true].map(|reused| Kind::WispPlain { reused });
        kinds.splice(place..place, plain);
    }
    groups
}

/// The figures by name. Those of the Rust WASI 0.2 guest carry the names that
/// are followed over time; the same of another guest say which.
fn ratios(results: &Results) -> BTreeMap<String, f64> {
    let fresh = Kind::Wisp { reused: false, unaccounted: false };
    let reused = Kind::Wisp { reused: true, unaccounted: false };
    let wasmtime = |tuned, reused| Kind::Wasmtime { tuned, reused };
    let cpu = |measurement: &Measurement| measurement.cpu_us_per_request;
    let rps = |measurement: &Measurement| measurement.requests_per_second;
    let mut figures = BTreeMap::new();
    let mut put = |name: String, value: Option<f64>| {
        if let Some(value) = value {
            figures.insert(name, value);
        }
    };
    put("accounting_cost".to_owned(), ratio(results, Guest::RustP2, fresh, UNACCOUNTED, cpu));
    for guest in GUESTS {
        let key = guest.key();
        let named = |name: &str| match guest {
            Guest::RustP2 => name.to_owned(),
            Guest::RustP3 => format!("{name}_p3"),
            _ => format!("{key}_{name}"),
        };
        let cpu_ratio = |over, under| ratio(results, guest, over, under, cpu);
        put(format!("{key}_fresh_cpu_over_native"), cpu_ratio(fresh, Kind::Native));
        put(format!("{key}_new_cpu_over_native"), cpu_ratio(Kind::WispNew, Kind::Native));
        put(format!("{key}_reused_cpu_over_native"), cpu_ratio(reused, Kind::Native));
        let plain = |reused| Kind::WispPlain { reused };
        put(format!("{key}_plain_fresh_cpu_over_native"), cpu_ratio(plain(false), Kind::Native));
        put(format!("{key}_plain_reused_cpu_over_native"), cpu_ratio(plain(true), Kind::Native));
        put(named("wasmtime_serve_cpu_over_fresh"), cpu_ratio(wasmtime(false, false), fresh));
        put(named("wasmtime_serve_cpu_over_new"), cpu_ratio(wasmtime(false, false), Kind::WispNew));
        put(named("wasmtime_serve_tuned_cpu_over_fresh"), cpu_ratio(wasmtime(true, false), fresh));
        put(named("wasmtime_serve_reused_cpu_over_reused"), cpu_ratio(wasmtime(false, true), reused));
        put(named("wasmtime_serve_tuned_reused_cpu_over_reused"), cpu_ratio(wasmtime(true, true), reused));
        put(
            format!("{key}_rps_over_wasmtime_serve"),
            ratio(results, guest, fresh, wasmtime(false, false), rps),
        );
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::Contestant;

    #[test]
    fn ratios_are_taken_within_rounds() {
        let guest = Guest::RustP2;
        let mut results = Results::new();
        let mut put = |kind, values: [f64; 3]| {
            let measured = |cpu_us_per_request: f64| Measurement {
                requests_per_second: 1e6 / cpu_us_per_request,
                cpu_us_per_request,
                ..Measurement::default()
            };
            results.insert(Contestant { guest, kind }, values.map(measured).to_vec());
        };
        // The second round ran on a machine that was ten times slower.
        put(Kind::Native, [10.0, 100.0, 10.0]);
        put(Kind::Wisp { reused: false, unaccounted: false }, [20.0, 220.0, 30.0]);
        put(UNACCOUNTED, [19.0, 220.0, 24.0]);
        put(Kind::Wasmtime { tuned: false, reused: false }, [100.0, 880.0, 90.0]);
        let figures = ratios(&results);
        assert_eq!(figures.get("rust_p2_fresh_cpu_over_native"), Some(&2.2));
        assert_eq!(figures.get("accounting_cost"), Some(&1.053));
        assert_eq!(figures.get("wasmtime_serve_cpu_over_fresh"), Some(&4.0));
        assert_eq!(figures.get("rust_p2_reused_cpu_over_native"), None);
        assert_eq!(figures.get("rust_p2_rps_over_wasmtime_serve"), Some(&4.0));
    }

    #[test]
    fn every_target_names_a_figure() {
        let mut results = Results::new();
        for (guest, kinds) in groups() {
            for kind in kinds {
                let measured = Measurement { cpu_us_per_request: 1.0, ..Measurement::default() };
                results.insert(Contestant { guest, kind }, vec![measured]);
            }
        }
        let figures = ratios(&results);
        assert!(TARGETS.iter().all(|(name, _)| figures.contains_key(*name)));
    }
}
