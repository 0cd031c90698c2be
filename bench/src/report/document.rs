//! A report as headings, paragraphs, tables and pictures, and its two forms: Markdown and one HTML
//! file. Pure.

use std::fmt::Write;

/// What a report consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// A heading; 1 is the title.
    Heading(u8, String),
    /// Links to the sections.
    Contents,
    /// A paragraph; `**bold**`, `*emphasis*` and `` `code` `` are as in Markdown.
    Paragraph(String),
    /// Points of a list, each as a paragraph.
    List(Vec<String>),
    /// A table.
    Table(Table),
    /// A picture.
    Figure(Figure),
    /// Markdown of somebody else's, shown as it is.
    Verbatim(String),
}

impl Block {
    /// Makes a picture; the words of its name are joined.
    pub fn figure(name: [&str; 3], caption: &str, svg: String) -> Self {
        Self::Figure(Figure { name: name.join("-"), caption: caption.to_owned(), svg })
    }
}

/// Columns and rows of text; the first column says what a row is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The heads of the columns.
    pub head: Vec<String>,
    /// As many cells in each as the head has.
    pub rows: Vec<Vec<String>>,
}

/// A picture with a name of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The name of its file, without an ending.
    pub name: String,
    /// What it shows, for those who do not see it.
    pub caption: String,
    /// The picture.
    pub svg: String,
}

impl Table {
    /// A table without rows.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { head: head.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    fn markdown(&self) -> String {
        let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<String> = (0..self.head.len())
            .map(|place| if place == 0 { "---" } else { "--:" }.into())
            .collect();
        let mut out = row(&self.head) + &row(&rule);
        self.rows.iter().for_each(|cells| out += &row(cells));
        out
    }

    fn html(&self) -> String {
        let cell = |text: &String, tag: &str| {
            let class = if text.chars().count() > PROSE { " class=\"prose\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", inline(text))
        };
        let row = |cells: &[String], tag: &str| {
            let cells: String = cells.iter().map(|text| cell(text, tag)).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|cells| row(cells, "td")).collect();
        format!(
            "<table>\n<thead>{}</thead>\n<tbody>\n{rows}</tbody></table>\n",
            row(&self.head, "th")
        )
    }
}

/// Markdown; pictures are links to `<plots>/<name>.svg`.
pub fn markdown(blocks: &[Block], plots: &str) -> String {
    let parts = blocks.iter().map(|block| match block {
        Block::Heading(level, text) => format!("{} {text}\n", "#".repeat(usize::from(*level))),
        Block::Contents => {
            sections(blocks).map(|text| format!("- [{text}](#{})\n", anchor(text))).collect()
        }
        Block::Paragraph(text) => format!("{text}\n"),
        Block::List(points) => points.iter().map(|point| format!("- {point}\n")).collect(),
        Block::Table(table) => table.markdown(),
        Block::Figure(figure) => format!("![{}]({plots}/{}.svg)\n", figure.caption, figure.name),
        Block::Verbatim(text) => format!("{}\n", text.trim()),
    });
    parts.collect::<Vec<_>>().join("\n")
}

/// One HTML file that needs nothing else.
pub fn html(title: &str, blocks: &[Block]) -> String {
    let html = |block: &Block| match block {
        Block::Contents => contents(blocks),
        block => html_block(block),
    };
    let body: String = blocks.iter().map(html).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" \
         content=\"width=device-width\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n{body}</body>\n</html>\n",
        escape(title),
    )
}

/// Characters; a longer cell is broken into lines.
const PROSE: usize = 48;

const STYLE: &str = "\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .87em;
  font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
td { white-space: nowrap; } td.prose { white-space: normal; min-width: 22rem; }
th { border-bottom: 2px solid #999; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
@media (max-width: 40rem) {
  td:first-child { white-space: normal; min-width: 7rem; position: sticky; left: 0; background: inherit; }
  tr { background: #fff; } th, td { padding: .25rem .4rem; }
}
tbody tr:hover { background: #f5f5f5; } figure { margin: 1rem 0; } figcaption { color: #555; }
nav { columns: 2; } svg { max-width: 100%; height: auto; border-radius: 4px; }
code, pre { background: #f3f3f3; } pre { overflow-x: auto; padding: .5rem; }
@media (prefers-color-scheme: dark) {
  body { background: #16181c; color: #dcdcdc; } a { color: #7ab7ff; } h2, th, td { border-color: #444; }
  tr { background: #16181c; } tbody tr:hover, code, pre { background: #26292f; } figcaption { color: #aaa; }
}
";

fn contents(blocks: &[Block]) -> String {
    let links = sections(blocks)
        .map(|text| format!("<a href=\"#{}\">{}</a><br>\n", anchor(text), escape(text)));
    format!("<nav>\n{}</nav>\n", links.collect::<String>())
}

/// The headings of the sections.
fn sections(blocks: &[Block]) -> impl Iterator<Item = &str> {
    blocks.iter().filter_map(|block| match block {
        Block::Heading(2, text) => Some(text.as_str()),
        _ => None,
    })
}

fn html_block(block: &Block) -> String {
    match block {
        Block::Contents => String::new(),
        Block::Heading(level, text) => {
            format!("<h{level} id=\"{}\">{}</h{level}>\n", anchor(text), inline(text))
        }
        Block::Paragraph(text) => format!("<p>{}</p>\n", inline(text)),
        Block::List(points) => {
            let points: String =
                points.iter().map(|point| format!("<li>{}</li>\n", inline(point))).collect();
            format!("<ul>\n{points}</ul>\n")
        }
        Block::Table(table) => table.html(),
        Block::Figure(figure) => {
            format!(
                "<figure>\n{}\n<figcaption>{}</figcaption>\n</figure>\n",
                figure.svg.trim(),
                escape(&figure.caption)
            )
        }
        Block::Verbatim(text) => verbatim_html(text),
    }
}

/// Tables of somebody else's Markdown become tables; the rest is paragraphs.
fn verbatim_html(text: &str) -> String {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut out = String::new();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty()).peekable();
    while let Some(line) = lines.next() {
        if !line.trim_start().starts_with('|') {
            let text = line.trim_start_matches('#').trim();
            // Writing to a string does not fail.
            writeln!(out, "<p>{}</p>", inline(text)).ok();
            continue;
        }
        let mut table = Table { head: cells(line), rows: Vec::new() };
        while let Some(line) = lines.next_if(|line| line.trim_start().starts_with('|')) {
            if !line.contains("--") {
                table.rows.push(cells(line));
            }
        }
        out += &table.html();
    }
    out
}

fn anchor(text: &str) -> String {
    let letters = text.chars().filter(|c| c.is_alphanumeric() || *c == ' ');
    letters.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// Text for HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The little Markdown inside a paragraph, as HTML.
fn inline(text: &str) -> String {
    let mut out = escape(text);
    for (mark, tag) in [("**", "strong"), ("`", "code"), ("*", "em")] {
        let mut parts = out.split(mark);
        let mut marked = parts.next().unwrap_or_default().to_owned();
        let rest: Vec<&str> = parts.collect();
        if rest.len() % 2 == 1 {
            // A mark without its other half is a character like others.
            continue;
        }
        for (place, part) in rest.into_iter().enumerate() {
            let slash = if place % 2 == 0 { "" } else { "/" };
            marked += &format!("<{slash}{tag}>{part}");
        }
        out = marked;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks() -> Vec<Block> {
        let mut table = Table::new(["what", "requests/s"]);
        table.rows.push(vec!["a < b".to_owned(), "**1.0K**".to_owned()]);
        let figure = Figure {
            name: "peers-c64".to_owned(),
            caption: "Rates".to_owned(),
            svg: "<svg></svg>".to_owned(),
        };
        vec![
            Block::Contents,
            Block::Heading(2, "Peers & others".to_owned()),
            Block::Paragraph("by `make bench`, *of course*".to_owned()),
            Block::Table(table),
            Block::Figure(figure),
        ]
    }

    #[test]
    fn markdown_has_tables_and_links_to_pictures() {
        let text = markdown(&blocks(), "plots");
        assert!(
            text.starts_with(
                "- [Peers & others](#peers--others)\n\n## Peers & others\n\nby `make bench`"
            ),
            "{text}"
        );
        assert!(
            text.contains("| what | requests/s |\n| --- | --: |\n| a < b | **1.0K** |\n"),
            "{text}"
        );
        assert!(text.contains("![Rates](plots/peers-c64.svg)"), "{text}");
    }

    #[test]
    fn html_is_escaped_and_holds_its_pictures() {
        let page = html("<title>", &blocks());
        for part in [
            "<title>&lt;title&gt;</title>",
            "<a href=\"#peers--others\">Peers &amp; others</a>",
            "<td>a &lt; b</td><td><strong>1.0K</strong></td>",
            "<code>make bench</code>, <em>of course</em>",
            "<svg></svg>",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("src=") && !page.contains("href=\"http"), "it needs nothing else");
    }

    #[test]
    fn a_lone_mark_stays_a_character() {
        assert_eq!(inline("2 * 3"), "2 * 3");
        assert_eq!(inline("**a** * b"), "<strong>a</strong> * b");
    }

    #[test]
    fn foreign_tables_become_tables() {
        let page = verbatim_html("# Head\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\ntext\n");
        assert_eq!(page.matches("<tr>").count(), 2);
        assert!(page.starts_with("<p>Head</p>") && page.ends_with("<p>text</p>\n"), "{page}");
    }
}
