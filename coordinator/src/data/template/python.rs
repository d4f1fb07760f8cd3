//! What chat templates expect of Python.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value, escape_formatter, filters};

/// The date that templates are told, always: the one that Llama 3.1's template falls back on.
///
/// A real date would make the prepared set depend on the day of its preparation.
pub const TODAY: &str = "2024-07-26";

/// `strftime_now(format)` at midnight of [`TODAY`], a Friday.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out.push_str(match chars.next() {
            Some('Y') => "2024",
            Some('y') => "24",
            Some('m') => "07",
            Some('d') => "26",
            Some('B') => "July",
            Some('b' | 'h') => "Jul",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('j') => "208",
            Some('F') => TODAY,
            Some('H' | 'M' | 'S') => "00",
            Some('I') => "12",
            Some('p') => "AM",
            Some('T' | 'X') => "00:00:00",
            Some('%') => "%",
            other => {
                let directive = other.map_or_else(|| "%".to_owned(), |c| format!("%{c}"));
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: unknown directive {directive}"),
                ));
            }
        });
    }
    Ok(out)
}

/// `tojson` as `transformers` has it: `json.dumps` with `ensure_ascii` off, so nothing is escaped for HTML.
pub(super) fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    kwargs.get::<Option<bool>>("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let no_options = Kwargs::from_iter([] as [(&str, Value); 0]);
    let escaped = filters::tojson(value, indent.filter(|v| !v.is_none()), no_options)?;
    Ok(Value::from(without_html_escapes(escaped.as_str().unwrap_or_default())))
}

/// Takes back the escapes by which minijinja makes JSON safe within HTML.
fn without_html_escapes(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at..];
        let plain = [("\\u003c", "<"), ("\\u003e", ">"), ("\\u0026", "&"), ("\\u0027", "'")]
            .into_iter()
            .find(|(code, _)| escape.starts_with(code));
        let (text, length) = match plain {
            Some((code, text)) => (text, code.len()),
            // A backslash and the character that it escapes.
            None => {
                let length = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
                (&escape[..length], length)
            }
        };
        out.push_str(text);
        rest = &escape[length..];
    }
    out + rest
}

/// Prints a value as Python's `str` does, where minijinja would print `true` or `none`.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
        ValueKind::None => out.write_str("None").map_err(Error::from),
        _ => escape_formatter(out, state, value),
    }
}

/// The template without `{% generation %}` and `{% endgeneration %}`, by which `transformers` finds answers.
///
/// They render nothing; each becomes a statement of the same kind, so that whitespace around it is treated the same.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let inner_start = tag.len() - tag.trim_start_matches(['-', '+']).trim_start().len();
        let (sign, inner) = tag.split_at(inner_start);
        out.push_str(sign);
        let word = inner.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        out.push_str(match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        });
        rest = &inner[word.len()..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_always_the_same() {
        assert_eq!(strftime_now("%d %b %Y").unwrap(), "26 Jul 2024");
        assert_eq!(strftime_now("%Y-%m-%d 100%%").unwrap(), "2024-07-26 100%");
        assert!(strftime_now("%Q").unwrap_err().to_string().contains("%Q"));
        assert!(strftime_now("%").is_err());
    }

    #[test]
    fn html_escapes_are_taken_back_and_others_kept() {
        assert_eq!(
            without_html_escapes(r#""\u003cb\u003e \u0026 \u0027 \\u003c \n \"é""#),
            r#""<b> & ' \\u003c \n \"é""#
        );
    }

    #[test]
    fn generation_tags_become_transparent() {
        let source = "{% generation %}a{%- endgeneration -%} b {% if x %}c{% endif %}";
        assert_eq!(without_generation_tags(source), "{% if true %}a{%- endif -%} b {% if x %}c{% endif %}");
        assert_eq!(without_generation_tags("{%"), "{%");
    }
}
