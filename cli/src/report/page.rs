//! The page around the sections: one file that loads nothing, runs nothing and is well-formed XML.
//!
//! Whatever comes from outside (names of columns and files, command lines) passes [`escape`]. The policy in the head
//! forbids scripts and connections, should anything slip through.

use std::fmt::Write as _;

/// Characters of a name that a picture has room for.
const LABEL: usize = 26;
/// Characters of a name anywhere.
const NAME: usize = 200;

/// Text as text of HTML and XML, also inside quotes. Characters that XML does not allow or that change the direction of
/// what follows are shown as `�`.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => {
                out.push('\u{fffd}');
            }
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// A name as a picture shows it: cut, not escaped.
pub(super) fn short(name: &str) -> String {
    cut(name, LABEL)
}

/// A name in the text, whole up to a bound and escaped.
pub(super) fn name(name: &str) -> String {
    format!("<b class=\"name\">{}</b>", escape(&cut(name, NAME)))
}

/// A section under a heading.
pub(super) fn section(id: &str, heading: &str, body: &str) -> String {
    format!("<section aria-labelledby=\"{id}\"><h2 id=\"{id}\">{}</h2>{body}</section>\n", escape(heading))
}

/// A paragraph of text that is escaped already.
pub(super) fn paragraph(text: &str) -> String {
    format!("<p>{text}</p>")
}

/// A picture under its caption, which is escaped already.
pub(super) fn figure(caption: &str, picture: &str) -> String {
    format!("<figure><figcaption>{caption}</figcaption>{picture}</figure>")
}

/// Pictures beside one another, as many as there is room for.
pub(super) fn grid(class: &str, figures: &[String]) -> String {
    format!("<div class=\"{class}\">{}</div>", figures.concat())
}

/// A table under its caption; cells are escaped already, the first of a row is its heading.
pub(super) fn table(caption: &str, header: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!("<div class=\"scroll\"><table><caption>{caption}</caption>");
    if !header.is_empty() {
        out.push_str("<thead><tr>");
        for cell in header {
            let _ = write!(out, "<th scope=\"col\">{cell}</th>");
        }
        out.push_str("</tr></thead>");
    }
    out.push_str("<tbody>");
    for row in rows {
        out.push_str("<tr>");
        for (i, cell) in row.iter().enumerate() {
            let _ = if i == 0 { write!(out, "<th scope=\"row\">{cell}</th>") } else { write!(out, "<td>{cell}</td>") };
        }
        out.push_str("</tr>");
    }
    out.push_str("</tbody></table></div>");
    out
}

/// What the two colours mean.
pub(super) const LEGEND: &str = "<p class=\"legend\"><svg viewBox=\"0 0 22 12\" width=\"22\" height=\"12\" \
     aria-hidden=\"true\"><path class=\"fill\" d=\"M1 11V5h6V2h7v4h7v5z\"/></svg> data \
     <svg viewBox=\"0 0 22 12\" width=\"22\" height=\"12\" aria-hidden=\"true\"><path class=\"model\" \
     d=\"M1 9L8 3L14 4L21 9\"/></svg> drawn from the model</p>";

/// The whole page. `title` is text, `body` is HTML.
pub(super) fn page(title: &str, body: &str) -> String {
    let title = escape(&cut(title, NAME));
    format!(
        "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

// Okabe and Ito's blue and vermilion, which all kinds of colour vision tell apart, and lighter ones on dark ground.
const STYLE: &str = "\
:root{--ground:#fff;--ink:#1c1f23;--soft:#5b636d;--rule:#d9dee3;--panel:#f7f8fa;--data:#0072b2;--model:#d55e00;\
--held:#009e73;--band:#8a929b}
@media (prefers-color-scheme:dark){:root{--ground:#14171a;--ink:#e6e8ea;--soft:#a3abb4;--rule:#343a41;--panel:#1b1f24;\
--data:#56b4e9;--model:#f0a050;--held:#3fc79a;--band:#7b848e}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,\
'Helvetica Neue',Arial,'Noto Sans',sans-serif}
main{max-width:1060px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.6rem 0 .4rem;padding-top:.9rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.4rem 0 .2rem}
p{max-width:46rem;margin:.4rem 0 .7rem}
.lead{color:var(--soft);margin-top:0}
.reading{font-size:1.08rem;border-left:4px solid var(--data);padding:.1rem 0 .1rem .8rem}
.note,figcaption,caption{color:var(--soft);font-size:.875rem}
.legend{display:flex;flex-wrap:wrap;gap:.35rem .5rem;align-items:center;font-size:.875rem;color:var(--soft)}
.legend svg{width:22px;flex:none}
.name{font-weight:600;color:var(--ink);overflow-wrap:anywhere}
figure{margin:0;background:var(--panel);border:1px solid var(--rule);border-radius:6px;padding:.6rem .6rem .3rem;\
min-width:0;break-inside:avoid;display:flex;flex-direction:column;justify-content:space-between}
figcaption{margin:0 .2rem .3rem;overflow-wrap:anywhere}
svg{display:block;width:100%;height:auto}
.thirds,.halves,.pairs{display:grid;gap:.8rem;margin:.8rem 0}
.thirds{grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr))}
.halves,.pairs{grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr))}
.two{display:grid;grid-template-columns:1fr 1fr;gap:.3rem}
.tiles{display:grid;gap:.8rem;margin:1.2rem 0;grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
.tiles div{background:var(--panel);border:1px solid var(--rule);border-radius:6px;padding:.6rem .8rem}
.tiles dt{color:var(--soft);font-size:.8rem}
.tiles dd{margin:0;font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}
.tiles dd small{font-size:.8rem;font-weight:400;color:var(--soft)}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.3rem}
th,td{padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top;\
font-weight:400}
thead th{color:var(--soft);font-size:.8rem}
td ul{margin:0;padding:0;list-style:none}
pre{background:var(--panel);border:1px solid var(--rule);border-radius:6px;padding:.7rem .9rem;overflow-x:auto;\
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;overflow-wrap:anywhere}
svg text{font-family:inherit}
.t{font-size:10.5px;fill:var(--soft)}
.n{font-size:11.5px;fill:var(--ink)}
.c{font-size:9.5px;fill:var(--ink)}
.m{text-anchor:middle}.e{text-anchor:end}
.axis{stroke:var(--band);fill:none;stroke-width:1}
.rule{stroke:var(--rule);fill:none;stroke-width:1}
.even{stroke:var(--soft);fill:none;stroke-width:1.2;stroke-dasharray:4 3}
.band{fill:var(--band);opacity:.2}
.fill{fill:var(--data);fill-opacity:.24;stroke:var(--data);stroke-width:1.2;stroke-linejoin:round}
.data{stroke:var(--data);fill:none;stroke-width:1.4;stroke-linejoin:round}
.model{stroke:var(--model);fill:none;stroke-width:2;stroke-linejoin:round}
.held{stroke:var(--held);fill:none;stroke-width:2;stroke-linejoin:round}
.thick{stroke-width:4}
.dots{stroke-linecap:round;stroke-width:3.2;fill:none;opacity:.65}
.data.dots{stroke:var(--data)}.model.dots{stroke:var(--model)}.held.dots{stroke:var(--held);stroke-width:5;opacity:1}
.hd{fill:var(--data)}.hm{fill:var(--model)}
.up{fill:var(--data)}.dn{fill:var(--model)}
.o1{opacity:.14}.o2{opacity:.26}.o3{opacity:.38}.o4{opacity:.5}.o5{opacity:.62}.o6{opacity:.74}.o7{opacity:.87}
@media print{:root{--ground:#fff;--ink:#000;--soft:#444;--rule:#ccc;--panel:#fff;--data:#0072b2;--model:#d55e00;\
--held:#009e73;--band:#888}main{max-width:none;padding:0}body{font-size:11pt}h2{break-after:avoid}\
figure,tr,.tiles{break-inside:avoid}.thirds{grid-template-columns:1fr 1fr 1fr}.halves,.pairs{grid-template-columns:1fr 1fr}\
.scroll,pre{overflow:visible}pre{white-space:pre-wrap}}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_through() {
        let hostile = "</style><script>alert('x')</script>\" onload=\"\u{0}\u{8}\u{202e}\u{ffff}&amp;\n";
        let escaped = escape(hostile);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\u{0}', '\u{8}', '\u{202e}', '\u{ffff}', '\n']), "{escaped}");
        assert!(escaped.contains("&amp;amp;") && escaped.contains("&lt;script&gt;"));
        assert!(!page(hostile, "").contains("<script"));
        assert_eq!(short(&"x".repeat(100)).chars().count(), LABEL);
        assert!(name(&"é".repeat(1000)).len() < 2 * NAME + 50);
    }

    #[test]
    fn a_page_loads_nothing() {
        let page = page("title", &section("a", "A & B", &table("c", &["x"], &[vec!["1".into(), "2".into()]])));
        for from_outside in ["http://", "https://", "url(", "@import", "<script", "src="] {
            let rest =
                page.replace("http://www.w3.org/1999/xhtml", "").replace("default-src", "").replace("style-src", "");
            assert!(!rest.contains(from_outside), "{from_outside}");
        }
        assert!(page.contains("A &amp; B") && page.contains("<th scope=\"row\">1</th><td>2</td>"));
    }
}
