//! Bar charts as SVG, for a page without scripts: [`bars`].

use std::fmt::Write as _;

use super::markup::escaped;

/// The width of a chart and the height of its bars, in its own units.
const WIDTH: usize = 640;
const HEIGHT: usize = 160;

/// The room above the bars for their counts, and below them for their names.
const ABOVE: usize = 18;
const BELOW: usize = 22;

/// A chart of named counts, with `title` for those who cannot see it.
pub(super) fn bars(title: &str, counts: &[(String, u64)]) -> String {
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let total = ABOVE + HEIGHT + BELOW;
    let slot = WIDTH / counts.len().max(1);
    let spoken: Vec<_> = counts.iter().map(|(name, count)| format!("{name}: {count}")).collect();
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {total}\" role=\"img\" aria-label=\"{}: {}\">\n",
        escaped(title),
        escaped(&spoken.join(", "))
    );
    for (index, (name, count)) in counts.iter().enumerate() {
        let (left, middle) = (index * slot, index * slot + slot / 2);
        // Rounded up: what is there is seen.
        let height =
            usize::try_from((u128::from(*count) * HEIGHT as u128).div_ceil(u128::from(most))).unwrap_or(0);
        let top = ABOVE + HEIGHT - height;
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{}\" y=\"{top}\" width=\"{}\" height=\"{height}\"/>\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{count}</text>\
             <text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            left + 4,
            slot.saturating_sub(8),
            top - 4,
            total - 6,
            escaped(name)
        );
    }
    let base = ABOVE + HEIGHT;
    let _ = write!(svg, "<line x1=\"0\" y1=\"{base}\" x2=\"{WIDTH}\" y2=\"{base}\"/>\n</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_bar_has_the_full_height_and_a_small_one_is_visible() {
        let svg = bars("Ages", &[("a".into(), 100_000), ("<b>".into(), 1), ("c".into(), 0)]);
        assert!(svg.contains("y=\"18\" width=\"205\" height=\"160\""), "{svg}");
        assert!(svg.contains("height=\"1\"") && svg.contains("height=\"0\""), "{svg}");
        assert!(
            svg.contains("aria-label=\"Ages: a: 100000, &lt;b&gt;: 1, c: 0\"") && !svg.contains("<b>"),
            "{svg}"
        );
        assert!(bars("None", &[]).contains("</svg>"));
    }
}
