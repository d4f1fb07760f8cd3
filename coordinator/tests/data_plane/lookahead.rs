use super::support::{byte_tokenizer, exchange};
use ballast_coordinator::config::{LookAhead, LookAheadMode, PreviewLevel, ShortAnswer, Turns};
use ballast_coordinator::data::lookahead::{LeftOut, Rewritten, is_on, is_rewritten, rewrite};
use ballast_coordinator::data::row::{Message, Role, loss_turns};
use ballast_coordinator::data::tokenize::Encoder;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::LazyLock;

const CONNECTOR: &str = " The answer begins with: ";
const PREFIX: &str = "Let's solve this problem. ";

fn virtual_mode() -> LookAhead {
    LookAhead { mode: LookAheadMode::Virtual, ..LookAhead::default() }
}

fn real_mode(tokens: u32) -> LookAhead {
    LookAhead { mode: LookAheadMode::Real, tokens, ..LookAhead::default() }
}

/// A token a byte, but for a few words: `hello` is one, `é` two that share a character.
fn byte_ranges(text: &str) -> Vec<Range<usize>> {
    static ENCODER: LazyLock<Encoder> = LazyLock::new(|| Encoder::new(&byte_tokenizer(), 1000, false, &[]).unwrap());
    ENCODER.alone(text).unwrap().ranges
}

fn rewritten(messages: &[Message], settings: &LookAhead) -> Rewritten {
    let turns = loss_turns(messages, settings.turns);
    rewrite(messages, &turns, settings, &|text| Ok(byte_ranges(text))).unwrap()
}

/// Question and answer after the rewriting.
fn pair(question: &str, answer: &str, settings: &LookAhead) -> (String, String) {
    let messages = rewritten(&exchange(question, answer), settings).messages;
    (messages[0].content.clone(), messages[1].content.clone())
}

/// What real mode shows of an answer.
fn shown(answer: &str, settings: &LookAhead) -> String {
    pair("Q", answer, settings).0.strip_prefix(&format!("Q{CONNECTOR}")).unwrap().to_owned()
}

#[test]
fn virtual_mode_puts_the_prefix_before_both() {
    let expected = (format!("Q?{CONNECTOR}{PREFIX}"), format!("{PREFIX}42"));
    assert_eq!(pair("Q?", "42", &virtual_mode()), expected);
}

#[test]
fn real_mode_shows_the_first_tokens_and_leaves_the_answer() {
    assert_eq!(pair("Q?", "hello world", &real_mode(3)), (format!("Q?{CONNECTOR}hello wo"), "hello world".into()));
}

#[test]
fn off_and_no_tokens_change_nothing() {
    for settings in [LookAhead { mode: LookAheadMode::Off, ..virtual_mode() }, real_mode(0)] {
        assert!(!is_on(&settings));
        assert_eq!(pair(" Q ", " A ", &settings), (" Q ".into(), " A ".into()));
    }
}

#[test]
fn both_sides_are_trimmed_before_and_not_after() {
    assert_eq!(pair(" Q?\n", "\n a b ", &real_mode(2)), (format!("Q?{CONNECTOR}a "), "a b".into()));
    assert_eq!(pair(" Q?\n", "\n a b ", &virtual_mode()), (format!("Q?{CONNECTOR}{PREFIX}"), format!("{PREFIX}a b")));
}

#[test]
fn an_empty_answer_leaves_the_row_as_it_is() {
    for settings in [virtual_mode(), real_mode(6)] {
        let row = rewritten(&exchange(" Q", " "), &settings);
        assert_eq!((row.messages, row.left_out), (exchange(" Q", " "), vec![LeftOut::Empty]));
    }
}

/// An answer of 5 tokens, of which 8 are wanted.
#[test]
fn short_answers_follow_the_policy() {
    let with = |tokens, short_answer| LookAhead { short_answer, ..real_mode(tokens) };
    assert_eq!(shown("abcde", &with(8, ShortAnswer::Full)), "abcde");
    assert_eq!(shown("abcde", &with(8, ShortAnswer::Cap)), "abc");
    let row = rewritten(&exchange("Q", "abcde"), &with(8, ShortAnswer::Skip));
    assert_eq!((row.messages, row.left_out), (exchange("Q", "abcde"), vec![LeftOut::Short]));
    // k = min(m, ceil(n / 2)) whatever m is.
    assert_eq!(shown("abcde", &with(2, ShortAnswer::Cap)), "ab");
    assert_eq!(shown("abcde", &with(5, ShortAnswer::Cap)), "abc");
    assert_eq!(shown("abcde", &with(5, ShortAnswer::Skip)), "abcde");

    let preview = |answer, settings| rewritten(&exchange("Q", answer), &settings).previews[0].clone();
    let full = preview("abcde", with(8, ShortAnswer::Full));
    assert_eq!((full.short, full.whole, full.answer_tokens), (true, true, Some(5)));
    let cap = preview("abcde", with(8, ShortAnswer::Cap));
    assert_eq!((cap.short, cap.whole), (true, false));
    let long = preview("abcdefghijkl", with(8, ShortAnswer::Cap));
    assert_eq!((long.short, long.whole), (false, false));
}

#[test]
fn a_preview_never_ends_within_a_character() {
    // Every character of these has three bytes, so three tokens.
    assert_eq!(shown("一二三", &real_mode(3)), "一");
    assert_eq!(shown("一二三", &real_mode(5)), "一");
    assert_eq!(shown("一二三", &real_mode(6)), "一二");
    // Nothing would be left: on to the next boundary.
    assert_eq!(shown("一二三", &real_mode(1)), "一");
    assert_eq!(shown("一二三", &real_mode(2)), "一");
}

#[test]
fn a_preview_never_ends_within_what_a_reader_sees_as_one() {
    let family = "👩‍👩‍👧‍👦";
    assert_eq!(shown(&format!("{family} there"), &real_mode(6)), family);
    assert_eq!(shown(&format!("ab{family} there"), &real_mode(9)), "ab");
    // A letter and a combining accent.
    assert_eq!(shown("e\u{301}a", &real_mode(1)), "e\u{301}");
    assert_eq!(shown("xe\u{301}a", &real_mode(2)), "x");
}

#[test]
fn only_the_chosen_turns_get_a_preview() {
    let messages = [exchange("Q1", "hello"), exchange("Q2", "world")].concat();
    let contents = |settings: &LookAhead, loss: &[usize]| {
        let row = rewrite(&messages, loss, settings, &|text| Ok(byte_ranges(text))).unwrap();
        row.messages.into_iter().map(|m| m.content).collect::<Vec<_>>()
    };
    let last = virtual_mode();
    let all = LookAhead { turns: Turns::All, ..virtual_mode() };
    let shown = |question: &str| format!("{question}{CONNECTOR}{PREFIX}");
    let begun = |answer: &str| format!("{PREFIX}{answer}");
    assert_eq!(contents(&last, &[1, 3]), ["Q1".into(), "hello".into(), shown("Q2"), begun("world")]);
    assert_eq!(contents(&all, &[1, 3]), [shown("Q1"), begun("hello"), shown("Q2"), begun("world")]);
    // The first answer bears no loss, so nothing of it is shown.
    assert_eq!(contents(&all, &[3]), ["Q1".into(), "hello".into(), shown("Q2"), begun("world")]);
}

#[test]
fn conversations_without_a_turn_for_the_preview_pass_through() {
    let mut ends_on_user = exchange("Q1", "A1");
    ends_on_user.push(Message::new(Role::User, "Q2"));
    let mut twice = exchange("Q1", "A1");
    twice.push(Message::new(Role::Assistant, "A2"));
    for messages in [ends_on_user, twice] {
        let row = rewritten(&messages, &virtual_mode());
        assert_eq!((row.messages, row.left_out), (messages, vec![LeftOut::NoTurn]));
    }
}

#[test]
fn a_system_prompt_is_not_touched() {
    let mut messages = vec![Message::new(Role::System, " S ")];
    messages.extend(exchange("Q", "A"));
    assert_eq!(rewritten(&messages, &virtual_mode()).messages[0].content, " S ");
}

/// At token level the preview's own ids bring their own space.
#[test]
fn no_space_dangles_before_spliced_ids() {
    let token = |settings| LookAhead { preview_level: PreviewLevel::Token, ..settings };
    assert_eq!(pair("Q", "hello world", &token(real_mode(1))).0, "Q The answer begins with:hello");
    let (question, answer) = pair("Q", "A", &token(virtual_mode()));
    assert_eq!(question, "Q The answer begins with:Let's solve this problem.");
    assert_eq!(answer, format!("{PREFIX}A"));
    let newline = LookAhead { connector: "\nBegin:\n".into(), ..token(real_mode(1)) };
    assert_eq!(pair("Q", "hello world", &newline).0, "Q\nBegin:\nhello");
}

#[test]
fn a_second_rewriting_is_seen() {
    for settings in [virtual_mode(), real_mode(3), LookAhead { preview_level: PreviewLevel::Token, ..real_mode(2) }] {
        let once = rewritten(&exchange("Q", "hello world"), &settings).messages;
        assert!(!is_rewritten(&exchange("Q", "hello world"), &settings));
        assert!(is_rewritten(&once, &settings));
        // Also by the other mode, and when a template or an editor took spaces off the ends.
        assert!(is_rewritten(&once, &virtual_mode()) && is_rewritten(&once, &real_mode(6)));
        let trimmed = exchange(once[0].content.trim(), once[1].content.trim());
        assert!(is_rewritten(&trimmed, &settings));
    }
    // The connector alone, or before something else, means nothing.
    assert!(!is_rewritten(&exchange("Q The answer begins with: ", "A"), &virtual_mode()));
    assert!(!is_rewritten(&exchange("Q The answer begins with: a letter?", "B"), &virtual_mode()));
    // A connector that stands before answers by chance tells nothing.
    let colon = LookAhead { connector: ": ".into(), ..virtual_mode() };
    assert!(!is_rewritten(&exchange("Capital of France: Paris", "Paris"), &colon));
}

proptest! {
    /// The laws of the rewriting, for any text.
    #[test]
    fn the_preview_begins_the_answer(
        question in ".{0,20}", answer in "[ -~é一👩🏽\u{301}\u{200D}\r\n]{0,30}", m in 1..12_u32, cap in any::<bool>(),
    ) {
        let short_answer = if cap { ShortAnswer::Cap } else { ShortAnswer::Full };
        let settings = LookAhead { short_answer, ..real_mode(m) };
        let row = rewritten(&exchange(&question, &answer), &settings);
        if answer.trim().is_empty() {
            prop_assert_eq!(row.messages, exchange(&question, &answer));
            return Ok(());
        }
        let preview = &row.previews[0];
        let user = &row.messages[0].content;
        prop_assert_eq!(&user[..preview.added], question.trim());
        prop_assert_eq!(&user[preview.added..preview.start], CONNECTOR);
        let shown = &user[preview.start..];
        prop_assert!(!shown.is_empty());
        prop_assert_eq!(&row.messages[1].content, answer.trim());
        prop_assert!(row.messages[1].content.starts_with(shown));
        prop_assert_eq!(preview.whole, shown == answer.trim());
    }

    #[test]
    fn virtual_mode_is_reversible(question in "[a-z ]{0,20}", answer in "[a-z ]{0,20}[a-z]") {
        let (asked, answered) = pair(&question, &answer, &virtual_mode());
        prop_assert_eq!(asked.strip_suffix(&format!("{CONNECTOR}{PREFIX}")), Some(question.trim()));
        prop_assert_eq!(answered.strip_prefix(PREFIX), Some(answer.trim()));
    }
}
