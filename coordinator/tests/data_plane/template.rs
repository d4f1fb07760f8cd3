use super::support::{exchange, fixture};
use ballast_coordinator::data::DataError;
use ballast_coordinator::data::row::{Message, Role};
use ballast_coordinator::data::segment::segments;
use ballast_coordinator::data::template::{BUILT_INS, ChatTemplate, TemplateSource, Turn};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<CaseMessage>,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct CaseMessage {
    role: String,
    content: String,
}

fn compile(source: &str) -> Result<ChatTemplate, DataError> {
    ChatTemplate::compile(&TemplateSource {
        name: "the template".into(),
        source: source.into(),
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        tokenizer_adds_bos: false,
    })
}

fn built_in(name: &str) -> ChatTemplate {
    ChatTemplate::compile(&TemplateSource::built_in(name, Some("<s>"), Some("</s>")).unwrap()).unwrap()
}

fn render(template: &ChatTemplate, messages: &[Message], add_generation_prompt: bool) -> Result<String, DataError> {
    template.render(&messages.iter().map(Turn::from).collect::<Vec<_>>(), add_generation_prompt)
}

/// Templates like those of known models render as Jinja renders them, byte for byte, or are refused as there.
#[test]
fn templates_render_as_in_python() {
    let cases: Vec<Case> = serde_json::from_slice(&fixture("template-renderings.json")).unwrap();
    assert!(cases.len() > 90);
    for case in cases {
        let source = String::from_utf8(fixture(&format!("templates/{}.jinja", case.template))).unwrap();
        let messages: Vec<Message> =
            case.messages.iter().map(|m| Message::new(Role::from_name(&m.role).unwrap(), m.content.as_str())).collect();
        let rendered = render(&compile(&source).unwrap(), &messages, case.add_generation_prompt);
        match (case.text, case.error) {
            (Some(text), None) => assert_eq!(rendered.unwrap(), text, "{}", case.template),
            (_, Some(error)) => {
                let message = rendered.unwrap_err().to_string();
                assert!(message.starts_with("the template cannot render the row: "), "{message}");
                assert!(message.contains(&error), "{message}");
            }
            _ => panic!("a case is neither text nor error"),
        }
    }
}

#[test]
fn built_in_templates_render_the_known_formats() {
    let messages = [
        Message::new(Role::System, "S"),
        Message::new(Role::User, "U"),
        Message::new(Role::Assistant, "A"),
        Message::new(Role::User, "V"),
    ];
    let expected = [
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("llama-2", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"),
        (
            "llama-3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("mistral", "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]"),
        ("zephyr", "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n"),
        ("plain", "S\nU\nA</s>\nV\n"),
    ];
    assert_eq!(expected.map(|(name, _)| name).as_slice(), BUILT_INS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, text) in expected {
        assert_eq!(render(&built_in(name), &messages, true).unwrap(), text, "{name}");
    }
}

/// Every built-in template can be cut into prompts and answers, for one turn and for several.
#[test]
fn built_in_templates_have_a_fixed_boundary() {
    let mut messages = exchange("U", "A");
    messages.extend(exchange("V", "B"));
    for (name, _) in BUILT_INS {
        let template = built_in(name);
        let parts = segments(&template, &messages, &[1, 3]).unwrap();
        let whole = render(&template, &messages, false).unwrap();
        assert_eq!(parts.iter().map(|p| p.text.as_str()).collect::<String>(), whole, "{name}");
        assert_eq!(parts.iter().map(|p| p.loss).collect::<Vec<_>>(), [false, true, false, true]);
        assert!(parts[1].text.contains('A') && parts[3].text.contains('B') && !parts[2].text.contains('A'), "{name}");
    }
}

#[test]
fn the_answer_is_all_that_its_turn_adds() {
    let parts = segments(&built_in("chatml"), &exchange("U", "A"), &[1]).unwrap();
    assert_eq!(parts[0].text, "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(parts[1].text, "A<|im_end|>\n");
}

#[test]
fn a_template_that_rewrites_history_is_refused() {
    let source = "{% for m in messages %}[{{ loop.revindex }}]{{ m.content }}{% endfor %}";
    let error = segments(&compile(source).unwrap(), &exchange("U", "A"), &[1]).unwrap_err().to_string();
    assert!(error.contains("from character 1: \"1]U\", then \"2]U[1]A\""), "{error}");
}

#[test]
fn a_template_that_is_no_jinja_is_refused_with_its_line() {
    let error = compile("fine\n{% for %}").unwrap_err().to_string();
    assert!(error.starts_with("the template does not compile: ") && error.contains(":2)"), "{error}");
}

#[test]
fn a_missing_token_is_undefined() {
    let source = TemplateSource {
        name: "t".into(),
        source: "{% if bos_token is defined %}{{ bos_token }}{% else %}none{% endif %}".into(),
        bos_token: None,
        eos_token: None,
        tokenizer_adds_bos: false,
    };
    assert_eq!(render(&ChatTemplate::compile(&source).unwrap(), &exchange("U", "A"), false).unwrap(), "none");
}
