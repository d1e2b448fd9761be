//! Plots as SVG: lines over one horizontal axis, one panel below the other.
//!
//! Colours come from a style sheet that asks whether the reader prefers a dark
//! page, so that a plot is readable wherever it is shown. A line is named at its
//! panel's top, with a dash of its own besides its colour.

use std::fmt::Write as _;

use crate::histogram::Histogram;

/// Width of a plot in pixels; pages show it at most this wide.
const WIDTH: f64 = 760.0;
/// Height of a panel's area in pixels.
const AREA_HEIGHT: f64 = 230.0;
/// Room for the plot's title.
const TITLE_HEIGHT: f64 = 34.0;
/// Room above a panel's area for one row of names of its lines.
const NAMES_HEIGHT: f64 = 20.0;
/// Room between panels.
const GAP: f64 = 6.0;
/// Width of the piece of a line before its name, and of the gap after the name.
const SAMPLE_WIDTH: f64 = 28.0;
const NAMES_GAP: f64 = 18.0;
/// Width of a letter in pixels, about.
const LETTER_WIDTH: f64 = 6.8;
/// Room below a panel's area for numbers and the axis's label.
const LABELS_HEIGHT: f64 = 46.0;
/// Room left of the areas.
const LEFT: f64 = 84.0;
/// Room right of the areas.
const RIGHT: f64 = 22.0;
/// How many numbers an axis has at most, about.
const TICKS_COUNT: f64 = 6.0;
/// Decades of a logarithmic axis that have numbers between the powers of ten.
const DENSE_DECADES: f64 = 2.0;
/// Points of a line that are drawn at most: more than the plot has columns.
const POINTS_COUNT: usize = 2000;
/// Lines have these colours, on light and on dark pages, and these dashes.
const LINES: [(&str, &str, &str); 6] = [
    ("#0b62c4", "#6fb1ff", "none"),
    ("#c2410c", "#ff9d66", "7 3"),
    ("#15803d", "#5fd38a", "2 3"),
    ("#7e22ce", "#c79bff", "9 3 2 3"),
    ("#a16207", "#e8c04a", "4 4"),
    ("#be185d", "#ff8cc0", "12 4"),
];

/// A plot.
pub(crate) struct Plot {
    /// What it shows.
    pub(crate) title: String,
    /// From top to bottom.
    pub(crate) panels: Vec<Panel>,
}

/// Two axes and the lines between them.
pub(crate) struct Panel {
    /// The horizontal axis.
    pub(crate) x: Axis,
    /// The vertical axis.
    pub(crate) y: Axis,
    /// The lines.
    pub(crate) lines: Vec<Line>,
}

/// An axis.
pub(crate) struct Axis {
    /// What it shows, with the unit.
    pub(crate) label: String,
    /// How values are spread over it.
    pub(crate) scale: Scale,
}

/// How values are spread over an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Evenly, from the smallest or from zero.
    Linear,
    /// By their logarithm; values that are not above zero are left out.
    Logarithmic,
}

/// A line.
pub(crate) struct Line {
    /// What it is.
    pub(crate) name: String,
    /// Its points, from left to right.
    pub(crate) points: Vec<(f64, f64)>,
}

/// The values of an axis and where they are.
struct Range {
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// An axis on which values are spread evenly.
    pub(crate) fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Linear }
    }

    /// An axis on which values are spread by their logarithm.
    pub(crate) fn logarithmic(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Logarithmic }
    }
}

impl Line {
    /// The distribution of latencies in nanoseconds, shown in microseconds.
    pub(crate) fn tail_us(name: &str, latency_ns: &Histogram) -> Self {
        let points = latency_ns.tail().into_iter().map(|(value, share)| (value as f64 / 1e3, share));
        Self { name: name.to_owned(), points: points.collect() }
    }
}

impl Panel {
    /// A distribution: which share of the values is larger than what.
    pub(crate) fn tail(label: &str, lines: Vec<Line>) -> Self {
        Self { x: Axis::logarithmic(label), y: Axis::logarithmic("share that took longer, %"), lines }
    }
}

impl Plot {
    /// The plot as the text of an SVG file.
    pub(crate) fn svg(&self) -> String {
        let height = TITLE_HEIGHT + self.panels.iter().map(Panel::height).sum::<f64>();
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>{title}</title>\n{style}\
             <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"22\">{title}</text>\n",
            title = escaped(&self.title),
            style = style(),
        );
        let mut top = TITLE_HEIGHT;
        for panel in &self.panels {
            panel.draw(&mut text, top);
            top += panel.height();
        }
        text.push_str("</svg>\n");
        text
    }
}

impl Panel {
    /// Where the name of each line is: how far to the right, and in which row.
    fn names(&self) -> Vec<(f64, usize)> {
        let (mut across, mut row) = (LEFT, 0);
        let place = |line: &Line| {
            let width = SAMPLE_WIDTH + LETTER_WIDTH * line.name.chars().count() as f64;
            if across > LEFT && across + width > WIDTH {
                (across, row) = (LEFT, row + 1);
            }
            let here = (across, row);
            across += width + NAMES_GAP;
            here
        };
        self.lines.iter().map(place).collect()
    }

    /// Room for the names of all lines.
    fn names_height(&self) -> f64 {
        let rows = self.names().last().map_or(1, |(_, row)| row + 1);
        GAP + NAMES_HEIGHT * rows as f64
    }

    fn height(&self) -> f64 {
        self.names_height() + AREA_HEIGHT + LABELS_HEIGHT
    }

    /// Draws the panel from `start` downwards.
    fn draw(&self, text: &mut String, start: f64) {
        let top = start + self.names_height();
        let values = |pick: fn(&(f64, f64)) -> f64| {
            self.lines.iter().flat_map(|line| &line.points).map(pick).collect::<Vec<_>>()
        };
        let x = Range::of(&values(|point| point.0), self.x.scale);
        let y = Range::of(&values(|point| point.1), self.y.scale);
        let (right, bottom) = (WIDTH - RIGHT, top + AREA_HEIGHT);
        let at_x = |value: f64| LEFT + x.place(value) * (right - LEFT);
        let at_y = |value: f64| bottom - y.place(value) * AREA_HEIGHT;
        let mut put = |line: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = text.write_fmt(line);
            text.push('\n');
        };
        for &tick in &x.ticks {
            let (place, number) = (at_x(tick), number(tick));
            put(format_args!("<path class=\"grid\" d=\"M{place:.1} {top:.1}V{bottom:.1}\"/>"));
            put(format_args!(
                "<text class=\"middle\" x=\"{place:.1}\" y=\"{:.1}\">{number}</text>",
                bottom + 16.0
            ));
        }
        for &tick in &y.ticks {
            let (place, number) = (at_y(tick), number(tick));
            put(format_args!("<path class=\"grid\" d=\"M{LEFT} {place:.1}H{right:.1}\"/>"));
            put(format_args!(
                "<text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{number}</text>",
                LEFT - 7.0,
                place + 4.0
            ));
        }
        put(format_args!("<path class=\"axis\" d=\"M{LEFT} {top:.1}V{bottom:.1}H{right:.1}\"/>"));
        put(format_args!(
            "<text class=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            f64::midpoint(LEFT, right),
            bottom + 34.0,
            escaped(&self.x.label)
        ));
        put(format_args!(
            "<text class=\"middle\" transform=\"translate(18 {:.1}) rotate(-90)\">{}</text>",
            f64::midpoint(top, bottom),
            escaped(&self.y.label)
        ));
        for (index, (line, (across, row))) in self.lines.iter().zip(self.names()).enumerate() {
            let class = index % LINES.len();
            let path = thinned(&line.points)
                .filter(|&(across, up)| x.shows(across) && y.shows(up))
                .enumerate()
                .map(|(index, (across, up))| {
                    let command = if index == 0 { 'M' } else { 'L' };
                    format!("{command}{:.1} {:.1}", at_x(across), at_y(up))
                })
                .collect::<String>();
            if !path.is_empty() {
                put(format_args!("<path class=\"line line{class}\" d=\"{path}\"/>"));
            }
            let level = start + GAP + NAMES_HEIGHT * row as f64 + 6.0;
            put(format_args!(
                "<path class=\"line line{class}\" d=\"M{across:.1} {level:.1}h22\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                across + SAMPLE_WIDTH,
                level + 4.0,
                escaped(&line.name)
            ));
        }
    }
}

impl Range {
    /// An axis that has room for these values.
    fn of(values: &[f64], scale: Scale) -> Self {
        let shown = values
            .iter()
            .copied()
            .filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0));
        let (low, high) = shown
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        // Nothing to show: an axis all the same.
        let (low, high) = if low > high { (1.0, 10.0) } else { (low, high) };
        match scale {
            Scale::Linear => Self::linear(low, high),
            Scale::Logarithmic => Self::logarithmic(low, high),
        }
    }

    fn linear(low: f64, high: f64) -> Self {
        // From zero, where that does not press the values into a corner.
        let low = if low >= 0.0 && low < high / 2.0 { 0.0 } else { low };
        let spread = if high > low { high - low } else { low.abs().max(1.0) };
        let step = step(spread / TICKS_COUNT);
        let (low, high) = ((low / step).floor() * step, ((low + spread) / step).ceil() * step);
        let count = ((high - low) / step).round() as u32;
        let ticks = (0..=count).map(|index| low + f64::from(index) * step).collect();
        Self { scale: Scale::Linear, low, high, ticks }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().floor(), high.log10().ceil());
        let last = if last > first { last } else { first + 1.0 };
        let factors: &[f64] = if last - first <= DENSE_DECADES { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let ticks = (first as i32..=last as i32)
            .flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)))
            .filter(|&tick| tick <= 10_f64.powf(last) * 1.001)
            .collect();
        Self { scale: Scale::Logarithmic, low: 10_f64.powf(first), high: 10_f64.powf(last), ticks }
    }

    /// Whether a value has a place on the axis.
    fn shows(&self, value: f64) -> bool {
        value.is_finite() && (self.scale == Scale::Linear || value > 0.0)
    }

    /// Where a value is: 0 at the low end, 1 at the high end.
    fn place(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).log10() / (self.high / self.low).log10(),
        }
    }
}

/// The next larger one of 1, 2, 5, 10, 20 … and their tenths.
fn step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= least)
        .unwrap_or(10.0 * power)
}

/// A number on an axis, as short as it can be.
fn number(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, " G"),
        size if size >= 1e6 => (value / 1e6, " M"),
        size if size >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    // Steps such as 0.1 add up to something beside what they should.
    let text = format!("{value:.4}");
    format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Every so manieth point and the last.
fn thinned(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> + '_ {
    let step = points.len().div_ceil(POINTS_COUNT).max(1);
    let last = points.last().filter(|_| points.len() % step != 1 && step > 1);
    points.iter().step_by(step).chain(last).copied()
}

/// Text as it may stand in XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The style sheet, for light and dark pages.
fn style() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for (index, (on_light, on_dark, dash)) in LINES.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(light, ".line{index}{{stroke:{on_light};stroke-dasharray:{dash}}}");
        let _ = write!(dark, ".line{index}{{stroke:{on_dark}}}");
    }
    format!(
        "<style>text{{font:12px system-ui,sans-serif;fill:#333}}.title{{font-size:15px;font-weight:600}}\
         .middle{{text-anchor:middle}}.end{{text-anchor:end}}.page{{fill:#fff}}\
         .grid{{stroke:#e3e3e3;fill:none}}.axis{{stroke:#777;fill:none}}\
         .line{{fill:none;stroke-width:1.8}}{light}\
         @media(prefers-color-scheme:dark){{text{{fill:#ccc}}.page{{fill:#15181c}}\
         .grid{{stroke:#2d3238}}.axis{{stroke:#888}}{dark}}}</style>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        let line = Line { name: "a < b".to_owned(), points };
        let panel =
            Panel { x: Axis::logarithmic("latency, µs"), y: Axis::linear("share, %"), lines: vec![line] };
        Plot { title: "A & B".to_owned(), panels: vec![panel] }
    }

    #[test]
    fn every_point_lies_inside_its_area() {
        let svg = plot(vec![(3.0, 0.0), (40.0, 12.5), (900.0, 99.0)]).svg();
        let path = svg
            .lines()
            .find_map(|line| line.strip_prefix("<path class=\"line line0\" d=\"M")?.strip_suffix("\"/>"))
            .unwrap_or_else(|| unreachable!("{svg}"));
        let points = path.split('L').map(|point| {
            let (x, y) = point.split_once(' ').unwrap_or_else(|| unreachable!("{point}"));
            (x.parse::<f64>(), y.parse::<f64>())
        });
        let top = TITLE_HEIGHT + GAP + NAMES_HEIGHT;
        let mut before = LEFT;
        for point in points {
            let (Ok(x), Ok(y)) = point else { unreachable!("{path}") };
            assert!(x >= before && x <= WIDTH - RIGHT, "{path}");
            assert!(y >= top && y <= top + AREA_HEIGHT, "{path}");
            before = x;
        }
    }

    #[test]
    fn text_is_escaped_and_pages_may_be_dark() {
        let svg = plot(vec![(1.0, 1.0)]).svg();
        assert!(svg.contains("A &amp; B") && svg.contains("a &lt; b"));
        assert!(svg.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn names_that_do_not_fit_beside_each_other_stand_below() {
        let line = |name: &str| Line { name: name.to_owned(), points: Vec::new() };
        let lines = vec![line(&"a".repeat(60)), line(&"b".repeat(60)), line("c")];
        let panel = Panel::tail("x", lines);
        assert_eq!(panel.names().iter().map(|(_, row)| *row).collect::<Vec<_>>(), [0, 1, 1]);
        assert!(panel.height() > Panel::tail("x", vec![line("c")]).height());
    }

    #[test]
    fn nothing_to_show_is_an_empty_area() {
        let svg = plot(vec![(0.0, f64::NAN)]).svg();
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    }

    #[test]
    fn ticks_are_round_numbers_around_the_values() {
        let range = Range::of(&[0.3, 7.2], Scale::Linear);
        assert_eq!((range.low, range.high), (0.0, 8.0));
        assert_eq!(range.ticks, [0.0, 2.0, 4.0, 6.0, 8.0]);
        let range = Range::of(&[30.0, 4000.0], Scale::Logarithmic);
        assert_eq!(
            range.ticks.iter().map(|&tick| number(tick)).collect::<Vec<_>>(),
            ["10", "100", "1000", "10 k"]
        );
    }

    #[test]
    fn long_lines_are_thinned_but_keep_their_ends() {
        let points = (0..POINTS_COUNT * 3 + 2).map(|index| (index as f64, 0.0)).collect::<Vec<_>>();
        let kept = thinned(&points).collect::<Vec<_>>();
        assert!(kept.len() <= POINTS_COUNT + 1);
        assert_eq!((kept.first(), kept.last()), (points.first(), points.last()));
    }
}
