//! `wisp top`: what apps are doing now.
//!
//! Servers tell what each app used since they started. This looks twice and shows the
//! difference, per second; whoever asks for one look gets it over one interval.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::IsTerminal as _,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::{Args, ValueEnum};
use console::{Term, measure_text_width, truncate_str};
use reqwest::Url;
use serde::Serialize;
use wisp_control::{AppUsage, DurationBucket, model::Page};

use super::common::parse_duration;
use crate::{
    client::{Client, FormatFlag, OutputFormat, ServerFlags, block_on, parse_server},
    error::Error,
    output,
};

/// The shortest time between two looks: a server has other things to do.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The narrowest terminal that the table is made for, and all that it needs.
const WIDTH_COLUMNS: usize = 80;

/// How much of that the other columns leave for an app's name.
const NAME_COLUMNS: usize = 20;

/// Lines above the table's rows.
const HEAD_LINES: usize = 3;

/// Show what the apps of a team are doing, and go on with it until Ctrl-C.
#[derive(Args)]
pub(crate) struct Top {
    /// Only these apps.
    app: Vec<String>,

    /// The apps of all teams; for operators.
    #[arg(long)]
    all: bool,

    /// Ask the operator's listener of `wisp serve` or `wisp server` (its `--admin`), such as
    /// `localhost:9000`.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["all", "server", "team", "token"])]
    admin: Option<String>,

    /// Look once, over one interval, and end.
    #[arg(long)]
    once: bool,

    /// The time between two looks.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "2s")]
    interval: Duration,

    /// What comes first.
    #[arg(long, value_name = "COLUMN", value_enum, default_value_t)]
    sort: Sort,

    #[command(flatten)]
    format: FormatFlag,

    #[command(flatten)]
    server: ServerFlags,
}

/// What the table is sorted by: the most first, names from A to Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// CPU time.
    #[default]
    Cpu,
    /// Requests per second.
    Requests,
    /// Failed requests per second.
    Errors,
    /// The duration that one of a hundred requests exceeds.
    P99,
    /// The most memory that an instance had.
    Memory,
    /// Requests that run.
    Running,
    /// The app's name.
    Name,
}

/// Who is asked.
enum Source {
    Cloud(Box<Client>),
    Admin(Box<Client>, Url),
}

/// An app over one interval.
#[derive(Serialize)]
struct Row {
    /// Requests per second.
    requests_per_s: f64,
    /// Requests per second that failed or found no place.
    errors_per_s: f64,
    /// Half of the requests took no longer, in microseconds; missing without requests.
    p50_us: Option<u64>,
    /// All but one of a hundred took no longer, in microseconds.
    p99_us: Option<u64>,
    /// CPU time over time: 1 is a whole core.
    cpu_cores: f64,
    /// Since the server started, and now.
    #[serde(flatten)]
    usage: AppUsage,
}

impl Top {
    /// Runs the command.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let source = match &self.admin {
            None => Source::Cloud(Box::new(Client::new(&self.server)?)),
            Some(address) => {
                let text = match address.contains("://") {
                    true => address.clone(),
                    false => format!("http://{address}"),
                };
                let server = parse_server(&text)?;
                let mut url = server.clone();
                url.set_path("/usage");
                Source::Admin(Box::new(Client::anonymous(server, self.server.ca_file.as_deref())?), url)
            }
        };
        block_on(async {
            tokio::select! {
                result = self.look(&source) => result,
                // That is how it ends.
                _ = tokio::signal::ctrl_c() => Ok(()),
            }
        })
    }

    async fn look(&self, source: &Source) -> Result<(), Error> {
        let interval = self.interval.max(MIN_INTERVAL);
        let is_json = self.format.format == OutputFormat::Json;
        let mut screen = (!is_json && !self.once && std::io::stdout().is_terminal()).then(Screen::open);
        let mut before = (Instant::now(), self.ask(source).await?);
        if let Some(screen) = &mut screen {
            // Something to look at until there is a difference.
            screen.draw(&self.text(source, rows(&[], &before.1, interval)));
        }
        loop {
            tokio::time::sleep(interval).await;
            let now = (Instant::now(), self.ask(source).await?);
            let mut rows = rows(&before.1, &now.1, now.0 - before.0);
            before = now;
            self.sort.apply(&mut rows);
            match &mut screen {
                Some(screen) => screen.draw(&self.text(source, rows)),
                None if is_json => {
                    // Numbers and words: they can be written.
                    let text = serde_json::to_string(&rows).unwrap_or_default();
                    output::data(&format!("{text}\n"));
                }
                None => {
                    output::data(&format!("{}{}", self.text(source, rows), if self.once { "" } else { "\n" }))
                }
            }
            if self.once {
                return Ok(());
            }
        }
    }

    async fn ask(&self, source: &Source) -> Result<Vec<AppUsage>, Error> {
        let mut apps: Vec<AppUsage> = match source {
            Source::Cloud(client) if self.all => client.list(client.at(&["usage"])).await?,
            Source::Cloud(client) => client.list(client.at_team(&["usage"]).await?).await?,
            Source::Admin(client, url) => client.get::<Page<AppUsage>>(url.clone()).await?.items,
        };
        if !self.app.is_empty() {
            let is_asked = |name: &str| self.app.iter().any(|asked| asked == name);
            apps.retain(|app| {
                is_asked(&app.app) || app.app.split_once('/').is_some_and(|(_, name)| is_asked(name))
            });
        }
        Ok(apps)
    }

    fn text(&self, source: &Source, rows: Vec<Row>) -> String {
        let server = match source {
            Source::Cloud(client) | Source::Admin(client, _) => {
                client.server().as_str().trim_end_matches('/')
            }
        };
        let shows_team = self.all || self.admin.is_some();
        write_table(server, now_s(), &rows, shows_team)
    }
}

impl Sort {
    fn apply(self, rows: &mut [Row]) {
        rows.sort_by(|one, other| {
            let most_first = match self {
                Self::Cpu => other.cpu_cores.total_cmp(&one.cpu_cores),
                Self::Requests => other.requests_per_s.total_cmp(&one.requests_per_s),
                Self::Errors => other.errors_per_s.total_cmp(&one.errors_per_s),
                Self::P99 => other.p99_us.cmp(&one.p99_us),
                Self::Memory => other.usage.peak_memory_bytes.cmp(&one.usage.peak_memory_bytes),
                Self::Running => other.usage.running_count.cmp(&one.usage.running_count),
                Self::Name => std::cmp::Ordering::Equal,
            };
            most_first.then_with(|| one.usage.app.cmp(&other.usage.app))
        });
    }
}

/// What happened between two looks.
fn rows(before: &[AppUsage], now: &[AppUsage], took: Duration) -> Vec<Row> {
    let known: HashMap<&str, &AppUsage> = before.iter().map(|usage| (usage.app.as_str(), usage)).collect();
    now.iter().map(|usage| row(known.get(usage.app.as_str()).copied(), usage, took)).collect()
}

fn row(before: Option<&AppUsage>, now: &AppUsage, took: Duration) -> Row {
    // A server that started anew counts anew; an app that is new has no before.
    let before = before.filter(|before| before.requests_count <= now.requests_count).unwrap_or(now);
    let seconds = took.as_secs_f64();
    let errors = |usage: &AppUsage| usage.failed_count + usage.refused_count;
    let per_s = |count: u64| count as f64 / seconds;
    let difference = |read: fn(&AppUsage) -> u64| read(now).saturating_sub(read(before));
    let durations: Vec<DurationBucket> = now
        .durations
        .iter()
        .enumerate()
        .map(|(place, bucket)| {
            let earlier = before.durations.get(place).map_or(0, |bucket| bucket.count);
            DurationBucket { count: bucket.count.saturating_sub(earlier), ..bucket.clone() }
        })
        .collect();
    Row {
        requests_per_s: per_s(difference(|usage| usage.requests_count)),
        errors_per_s: per_s(errors(now).saturating_sub(errors(before))),
        p50_us: quantile(&durations, 0.5),
        p99_us: quantile(&durations, 0.99),
        cpu_cores: difference(|usage| usage.cpu_ns) as f64 / 1e9 / seconds,
        usage: now.clone(),
    }
}

/// The duration that this share of requests did not exceed, as far as buckets tell.
fn quantile(buckets: &[DurationBucket], share: f64) -> Option<u64> {
    let count: u64 = buckets.iter().map(|bucket| bucket.count).sum();
    if count == 0 {
        return None;
    }
    let rank = count as f64 * share;
    let (mut below, mut lower_us) = (0, 0);
    for bucket in buckets {
        let upper_us = bucket.up_to_us.unwrap_or(lower_us);
        if (below + bucket.count) as f64 >= rank && bucket.count > 0 {
            // As if those in one bucket were spread evenly.
            let part = (rank - below as f64) / bucket.count as f64;
            return Some(lower_us + ((upper_us - lower_us) as f64 * part).round() as u64);
        }
        below += bucket.count;
        lower_us = upper_us;
    }
    Some(lower_us)
}

fn write_table(server: &str, now_s: u64, rows: &[Row], shows_team: bool) -> String {
    // The sum of nothing is -0.0.
    let sum = |read: fn(&Row) -> f64| rows.iter().map(read).sum::<f64>() + 0.0;
    let apps = if rows.len() == 1 { "app" } else { "apps" };
    let head = format!(
        "{:02}:{:02}:{:02}  {} {apps}  {} requests/s  {} errors/s  {:.2} cores  {server}",
        now_s / 3_600 % 24,
        now_s / 60 % 60,
        now_s % 60,
        rows.len(),
        rate(sum(|row| row.requests_per_s)),
        rate(sum(|row| row.errors_per_s)),
        sum(|row| row.cpu_cores),
    );
    let mut text = format!("{}\n\n", truncate_str(&head, WIDTH_COLUMNS, "…"));
    let mut line = |columns: [&str; 9]| {
        let [app, state, rest @ ..] = columns;
        let app = truncate_str(app, NAME_COLUMNS, "…");
        let pad = NAME_COLUMNS - measure_text_width(&app).min(NAME_COLUMNS);
        let _ = write!(text, "{app}{:pad$} {state:<10}", "");
        for (column, width) in rest.iter().zip([7, 6, 7, 7, 6, 4, 5]) {
            let _ = write!(text, " {column:>width$}");
        }
        text.push('\n');
    };
    line(["app", "state", "req/s", "err/s", "p50", "p99", "cpu %", "run", "mem"]);
    for row in rows {
        let name = match row.usage.app.split_once('/') {
            Some((_, name)) if !shows_team => name,
            _ => &row.usage.app,
        };
        line([
            name,
            &row.usage.state,
            &rate(row.requests_per_s),
            &rate(row.errors_per_s),
            &duration(row.p50_us),
            &duration(row.p99_us),
            &rate(row.cpu_cores * 100.0),
            &row.usage.running_count.to_string(),
            &size(row.usage.peak_memory_bytes),
        ]);
    }
    text
}

/// A number with as many digits as are worth reading.
fn rate(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        ..9.95 => format!("{value:.1}"),
        ..99_999.5 => format!("{value:.0}"),
        _ => format!("{:.0}k", value / 1_000.0),
    }
}

fn duration(us: Option<u64>) -> String {
    match us {
        None => "-".to_owned(),
        Some(us @ 0..1_000) => format!("{us}µs"),
        Some(us @ 1_000..100_000) => format!("{:.1}ms", us as f64 / 1e3),
        Some(us @ 100_000..1_000_000) => format!("{:.0}ms", us as f64 / 1e3),
        Some(us) => format!("{:.1}s", us as f64 / 1e6),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "-".to_owned(),
        1..1_048_576 => format!("{}K", bytes >> 10),
        1_048_576..10_737_418_240 => format!("{}M", bytes >> 20),
        _ => format!("{}G", bytes >> 30),
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A terminal that is drawn on from its top, again and again.
struct Screen {
    terminal: Term,
}

impl Screen {
    fn open() -> Self {
        let terminal = Term::stdout();
        // A terminal that cannot is looked at all the same.
        let _ = terminal.hide_cursor();
        let _ = terminal.clear_screen();
        Self { terminal }
    }

    /// Draws in one piece over what was there, so that nothing flickers.
    fn draw(&mut self, text: &str) {
        let (rows_count, columns_count) = self.terminal.size_checked().unwrap_or((24, WIDTH_COLUMNS as u16));
        let fitting_count = usize::from(rows_count).saturating_sub(1).max(HEAD_LINES);
        let mut drawn = String::from("\x1b[H");
        for line in text.lines().take(fitting_count) {
            drawn.push_str(&truncate_str(line, usize::from(columns_count), ""));
            // What is left of a longer line that was there.
            drawn.push_str("\x1b[K\n");
        }
        drawn.push_str("\x1b[J");
        output::data(&drawn);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.terminal.show_cursor();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(up_to_us: Option<u64>, count: u64) -> DurationBucket {
        DurationBucket { up_to_us, count }
    }

    fn usage(app: &str, requests_count: u64) -> AppUsage {
        AppUsage {
            app: app.to_owned(),
            state: "warm".to_owned(),
            requests_count,
            failed_count: requests_count / 10,
            cpu_ns: requests_count * 1_000_000,
            peak_memory_bytes: 3 << 20,
            durations: vec![bucket(Some(100), requests_count), bucket(Some(250), 0), bucket(None, 0)],
            ..AppUsage::default()
        }
    }

    #[test]
    fn a_quantile_lies_in_the_bucket_with_its_rank() {
        let buckets = [bucket(Some(100), 50), bucket(Some(200), 40), bucket(None, 10)];
        assert_eq!(quantile(&buckets, 0.5), Some(100));
        assert_eq!(quantile(&buckets, 0.7), Some(150));
        assert_eq!(quantile(&buckets, 0.99), Some(200), "no more is known than that it is above");
        assert_eq!(quantile(&[bucket(Some(100), 0)], 0.5), None);
    }

    #[test]
    fn what_is_shown_is_what_happened_in_between() {
        let row = row(Some(&usage("a", 100)), &usage("a", 300), Duration::from_secs(2));
        assert_eq!((row.requests_per_s, row.errors_per_s, row.cpu_cores), (100.0, 10.0, 0.1));
        assert_eq!(row.p50_us, Some(50));
        // The server was started anew in between.
        let row = super::row(Some(&usage("a", 300)), &usage("a", 5), Duration::from_secs(2));
        assert_eq!(row.requests_per_s, 0.0);
    }

    #[test]
    fn no_apps_use_no_cores() {
        let text = write_table("http://localhost:3900", 0, &[], false);
        assert!(text.starts_with("00:00:00  0 apps  0 requests/s  0 errors/s  0.00 cores"), "{text}");
    }

    #[test]
    fn the_table_fits_80_columns() {
        let long = "a-team-with-a-name/an-app-with-a-name-that-is-longer";
        let mut rows = rows(
            &[usage("x/b", 0), usage(long, 0)],
            &[usage("x/b", 7), usage(long, 9_000_000)],
            Duration::from_secs(1),
        );
        Sort::Requests.apply(&mut rows);
        let text = write_table("http://localhost:3900", 45_296, &rows, true);
        assert!(text.lines().all(|line| measure_text_width(line) <= WIDTH_COLUMNS), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("12:34:56  2 apps  9000k requests/s"), "{text}");
        assert!(lines[HEAD_LINES].starts_with("a-team-with-a-name/…"), "{text}");
        Sort::Name.apply(&mut rows);
        assert_eq!(rows[1].usage.app, "x/b");
    }
}
