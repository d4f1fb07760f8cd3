//! Downloads from a local server that answers as the Hugging Face hub does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod support;

use ballast_basemodel::{Error, Hub, ModelSource};
use ballast_proto::{Coded, ErrorCode};
use safetensors::tensor::Dtype;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{GgufBuilder, bytes_of, config, safetensors_bytes, tensors};
use tempfile::tempdir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secretsecretsecret";

/// What the server does wrong.
#[derive(Clone, Copy, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    /// Closes the connection in the middle of a weight file.
    CutBody,
    /// Sends a shorter file than it announces.
    ShortFile,
    /// Flips a bit of a weight file.
    WrongBytes,
    /// Announces a redirection to nowhere, on which the client panics.
    NoLocation,
    /// Accepts and never answers.
    Silence,
    /// Fails.
    Status500,
}

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    path: String,
    authorization: Option<String>,
}

/// A hub with one repository, `org/tiny`. Large files are redirected to another path, as to a content network.
struct Server {
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    fault: Arc<Mutex<Fault>>,
}

impl Server {
    fn start(files: BTreeMap<String, Vec<u8>>, private: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (seen, fault) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Fault::None)));
        let server = Self { address, seen: Arc::clone(&seen), fault: Arc::clone(&fault) };
        let files = Arc::new(files);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (files, seen, fault) = (Arc::clone(&files), Arc::clone(&seen), Arc::clone(&fault));
                std::thread::spawn(move || serve(stream, &files, &seen, &fault, private));
            }
        });
        server
    }

    fn fail(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    fn requests(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn hub(&self, home: &Path, more: &[(&str, &str)]) -> Hub {
        let mut variables: HashMap<&str, String> = more.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        variables.insert("HF_HOME", home.to_str().unwrap().to_owned());
        variables.entry("HF_ENDPOINT").or_insert_with(|| self.address.clone());
        Hub::from_variables(|name| variables.get(name).cloned()).unwrap()
    }
}

fn serve(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    seen: &Mutex<Vec<Seen>>,
    fault: &Mutex<Fault>,
    private: bool,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())))
        .collect();
    let authorization = headers.get("authorization").cloned();
    seen.lock().unwrap().push(Seen { path: path.clone(), authorization: authorization.clone() });
    let fault = *fault.lock().unwrap();
    if fault == Fault::Silence {
        // Until the client has gone.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
        return;
    }
    let allowed = !private || authorization == Some(format!("Bearer {TOKEN}"));
    let answer = if fault == Fault::Status500 {
        answer("500 Internal Server Error", &[], b"", 0)
    } else if !allowed {
        answer("401 Unauthorized", &[], b"", 0)
    } else {
        respond(&path, headers.get("range").map(String::as_str), files, fault)
    };
    let _ = stream.write_all(&answer);
}

fn respond(path: &str, range: Option<&str>, files: &BTreeMap<String, Vec<u8>>, fault: Fault) -> Vec<u8> {
    if path == "/api/models/org/tiny/revision/main" || path == format!("/api/models/org/tiny/revision/{COMMIT}") {
        let siblings: Vec<_> = files.keys().map(|f| json!({"rfilename": f})).collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return answer("200 OK", &[("content-type", "application/json".into())], body.as_bytes(), body.len());
    }
    let resolved = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let stored = path.strip_prefix("/storage/");
    let Some((name, content)) = resolved.or(stored).and_then(|n| files.get_key_value(n)) else {
        return answer("404 Not Found", &[], b"", 0);
    };
    let large = name.ends_with(".safetensors") || name.ends_with(".gguf");
    let etag = if large { hex::encode(Sha256::digest(content)) } else { format!("{:040x}", content.len()) };
    let mut headers = vec![("x-repo-commit", COMMIT.to_owned()), ("etag", format!("\"{etag}\""))];
    if large && stored.is_none() {
        headers.push(("x-linked-etag", format!("\"{etag}\"")));
        if fault != Fault::NoLocation {
            headers.push(("location", format!("/storage/{name}")));
        }
        return answer("302 Found", &headers, b"", 0);
    }
    let (start, end) = parse_range(range, content.len());
    headers.push(("content-range", format!("bytes {start}-{}/{}", end.saturating_sub(1), content.len())));
    let mut body = content[start..end].to_vec();
    let announced = body.len();
    if large && announced > 1 {
        match fault {
            Fault::CutBody => body.truncate(announced / 2),
            Fault::ShortFile => {
                body.truncate(announced / 2);
                return answer("206 Partial Content", &headers, &body, body.len());
            }
            Fault::WrongBytes => body[announced - 1] ^= 1,
            _ => {}
        }
    }
    answer("206 Partial Content", &headers, &body, announced)
}

fn parse_range(range: Option<&str>, length: usize) -> (usize, usize) {
    let Some((start, end)) = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) else { return (0, length) };
    let start = start.parse().unwrap_or(0).min(length);
    (start, end.parse().map_or(length, |e: usize| (e + 1).min(length)))
}

fn answer(status: &str, headers: &[(&str, String)], body: &[u8], length: usize) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n");
    headers.iter().for_each(|(k, v)| out.push_str(&format!("{k}: {v}\r\n")));
    [out.as_bytes(), b"\r\n", body].concat()
}

fn checkpoint() -> BTreeMap<String, Vec<u8>> {
    let weights = safetensors_bytes(&tensors(), Dtype::F32, bytes_of);
    let text = |s: &str| s.as_bytes().to_vec();
    BTreeMap::from([
        ("config.json".to_owned(), config().to_string().into_bytes()),
        ("generation_config.json".to_owned(), text(r#"{"eos_token_id": [2, 3]}"#)),
        ("chat_template.jinja".to_owned(), text("{{ messages }}")),
        ("model.safetensors".to_owned(), weights),
        ("README.md".to_owned(), text("not needed")),
        ("pytorch_model.bin".to_owned(), text("never read")),
    ])
}

fn sharded() -> BTreeMap<String, Vec<u8>> {
    let mut files = checkpoint();
    files.remove("model.safetensors");
    let all = tensors();
    let mut map = serde_json::Map::new();
    for half in 0..2 {
        let name = format!("model-{half}.safetensors");
        let part: Vec<_> = all.iter().enumerate().filter(|(i, _)| i % 2 == half).map(|(_, t)| t).collect();
        map.extend(part.iter().map(|(n, _)| ((*n).clone(), json!(name))));
        files.insert(name, safetensors_bytes(part, Dtype::F32, bytes_of));
    }
    files.insert("model.safetensors.index.json".into(), json!({"weight_map": map}).to_string().into_bytes());
    files
}

fn source(name: &str) -> ModelSource {
    ModelSource::parse(name, None).unwrap()
}

fn expect_error(hub: &Hub, name: &str, code: ErrorCode, parts: &[&str]) -> Error {
    let error = source(name).fetch_from(hub).unwrap_err();
    let message = error.to_string();
    assert!(parts.iter().all(|p| message.contains(p)), "{message}");
    assert_eq!(error.code(), code, "{message}");
    error
}

#[test]
fn a_checkpoint_is_downloaded_once_and_then_found_offline() {
    let server = Server::start(checkpoint(), false);
    let home = tempdir().unwrap();
    let online = source("hf:org/tiny").fetch_from(&server.hub(home.path(), &[])).unwrap();
    assert_eq!(online.stop_ids(), [2, 3]);
    assert_eq!(online.chat_template().unwrap().source, "{{ messages }}");
    let first = server.requests();
    assert!(
        first.iter().all(|r| !r.path.contains("README") && !r.path.contains(".bin") && r.authorization.is_none()),
        "{first:?}"
    );

    // A second time only the list of files is asked for.
    source("hf:org/tiny").fetch_from(&server.hub(home.path(), &[])).unwrap();
    let again = server.requests().split_off(first.len());
    assert_eq!(again.iter().map(|r| r.path.as_str()).collect::<Vec<_>>(), ["/api/models/org/tiny/revision/main"]);

    // Offline nothing is asked for, by branch and by commit.
    let before = server.requests().len();
    let offline = server.hub(home.path(), &[("HF_HUB_OFFLINE", "1")]);
    for revision in [None, Some(COMMIT)] {
        let model = ModelSource::parse("hf:org/tiny", revision).unwrap().fetch_from(&offline).unwrap();
        assert_eq!(model.sha256().unwrap(), online.sha256().unwrap());
    }
    assert_eq!(server.requests().len(), before);
}

#[test]
fn shards_and_gguf_files() {
    let home = tempdir().unwrap();
    let server = Server::start(sharded(), false);
    let model = source("hf:org/tiny").fetch_from(&server.hub(home.path(), &[])).unwrap();
    assert_eq!(model.tensor_names().len(), tensors().len());

    let home = tempdir().unwrap();
    let files =
        BTreeMap::from([("tiny.gguf".to_owned(), GgufBuilder::tiny().build()), ("other.gguf".to_owned(), vec![0])]);
    let server = Server::start(files, false);
    let hub = server.hub(home.path(), &[]);
    assert!(source("hf:org/tiny/tiny.gguf").fetch_from(&hub).is_ok());
    assert!(server.requests().iter().all(|r| !r.path.contains("other")));
    let offline = server.hub(home.path(), &[("HF_HUB_OFFLINE", "true")]);
    assert!(source("hf:org/tiny/tiny.gguf").fetch_from(&offline).is_ok());
    expect_error(
        &offline,
        "hf:org/tiny/other.gguf",
        ErrorCode::ModelNotFound,
        &["other.gguf is not in the cache", "HF_HUB_OFFLINE"],
    );
    let hint = "hf:org/tiny holds no config.json; its GGUF files are hf:org/tiny/other.gguf, hf:org/tiny/tiny.gguf";
    expect_error(&hub, "hf:org/tiny", ErrorCode::ModelNotFound, &[hint]);
    expect_error(
        &hub,
        "hf:org/tiny/none.gguf",
        ErrorCode::ModelNotFound,
        &["hf:org/tiny holds no none.gguf; its GGUF files are"],
    );
}

#[test]
fn the_token_is_sent_and_never_shown() {
    let server = Server::start(checkpoint(), true);
    let home = tempdir().unwrap();
    let refused = expect_error(
        &server.hub(home.path(), &[]),
        "hf:org/tiny",
        ErrorCode::ModelNotFound,
        &["(401)", "set HF_TOKEN"],
    );
    assert_eq!(
        refused.to_string(),
        "hf:org/tiny: its list of files: the hub refuses it (401); it may need a token: set HF_TOKEN"
    );
    let wrong = server.hub(home.path(), &[("HF_TOKEN", "hf_wrongwrong")]);
    let error = expect_error(&wrong, "hf:org/tiny", ErrorCode::ModelNotFound, &["(401)", "HF_TOKEN gives no access"]);
    assert!(!format!("{error} {error:?} {wrong:?}").contains("hf_wrongwrong"));

    let hub = server.hub(home.path(), &[("HF_TOKEN", TOKEN)]);
    source("hf:org/tiny").fetch_from(&hub).unwrap();
    let sent = server.requests().iter().filter(|r| r.authorization == Some(format!("Bearer {TOKEN}"))).count();
    assert!(sent > 4, "{sent} requests with the token");

    // A token file in HF_HOME counts where the variable is not set.
    let home = tempdir().unwrap();
    std::fs::write(home.path().join("token"), format!("{TOKEN}\n")).unwrap();
    source("hf:org/tiny").fetch_from(&server.hub(home.path(), &[])).unwrap();

    for fault in [Fault::Status500, Fault::CutBody, Fault::NoLocation] {
        server.fail(fault);
        let home = tempdir().unwrap();
        let hub = server.hub(home.path(), &[("HF_TOKEN", TOKEN)]);
        let error = expect_error(&hub, "hf:org/tiny", ErrorCode::ModelDownload, &["cannot download hf:org/tiny"]);
        assert!(!format!("{error} {error:?} {hub:?}").contains(TOKEN));
    }
    let bad = Hub::from_variables(|name| Some(if name == "HF_TOKEN" { "hf_a\nb" } else { "/tmp" }.into())).unwrap_err();
    assert_eq!(bad.to_string(), "HF_TOKEN holds characters that are not allowed in a token");
}

#[test]
fn what_is_not_there() {
    let server = Server::start(checkpoint(), false);
    let home = tempdir().unwrap();
    let hub = server.hub(home.path(), &[]);
    let error = expect_error(&hub, "hf:org/none", ErrorCode::ModelNotFound, &["404"]);
    assert_eq!(
        error.to_string(),
        "hf:org/none: its list of files: the hub does not have it (404); check name and revision"
    );
    let missing = ModelSource::parse("hf:org/tiny", Some("v9")).unwrap().fetch_from(&hub).unwrap_err();
    assert_eq!(missing.code(), ErrorCode::ModelNotFound);
    let offline = server.hub(home.path(), &[("HF_HUB_OFFLINE", "yes")]);
    expect_error(
        &offline,
        "hf:org/tiny",
        ErrorCode::ModelNotFound,
        &["hf:org/tiny at main: it is not in the cache", "HF_HUB_OFFLINE"],
    );
    let mut files = checkpoint();
    files.remove("model.safetensors");
    let server = Server::start(files, false);
    expect_error(
        &server.hub(home.path(), &[]),
        "hf:org/tiny",
        ErrorCode::ModelNotFound,
        &["hf:org/tiny holds no safetensors"],
    );
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hub = server.hub(home.path(), &[("HF_ENDPOINT", &format!("http://{closed}"))]);
    expect_error(&hub, "hf:org/tiny", ErrorCode::ModelDownload, &["its list of files", "HF_HUB_OFFLINE=1"]);
}

#[test]
fn damage_is_noticed_and_healed() {
    let server = Server::start(checkpoint(), false);
    for (fault, says) in [
        (Fault::CutBody, "model.safetensors: "),
        (Fault::ShortFile, "bytes arrived instead of"),
        (Fault::WrongBytes, "its SHA-256 is"),
        (Fault::NoLocation, "the hub's answer is malformed"),
        (Fault::Status500, "the hub answers with status 500"),
    ] {
        let home = tempdir().unwrap();
        let hub = server.hub(home.path(), &[]);
        server.fail(fault);
        expect_error(&hub, "hf:org/tiny", ErrorCode::ModelDownload, &[says]);
        // Offline the half of a model is none.
        let offline = server.hub(home.path(), &[("HF_HUB_OFFLINE", "1")]);
        expect_error(&offline, "hf:org/tiny", ErrorCode::ModelNotFound, &["is not in the cache"]);
        // The next run is not hurt by what the last one left.
        server.fail(Fault::None);
        let model = source("hf:org/tiny").fetch_from(&hub).unwrap();
        let (shape, values) = &tensors()["model.norm.weight"];
        assert_eq!(&model.tensor_f32("model.norm.weight", shape).unwrap(), values);
    }
}

#[test]
fn silence_is_given_up() {
    let server = Server::start(checkpoint(), false);
    server.fail(Fault::Silence);
    let home = tempdir().unwrap();
    let hub = server.hub(home.path(), &[]).with_stall(Duration::from_millis(200));
    expect_error(&hub, "hf:org/tiny", ErrorCode::ModelDownload, &["nothing arrived for 0.2 s"]);
}

#[test]
fn an_index_cannot_reach_outside() {
    let mut files = sharded();
    let index = json!({"weight_map": {"a": "../../../../x.safetensors"}}).to_string();
    files.insert("model.safetensors.index.json".into(), index.into_bytes());
    let server = Server::start(files, false);
    let home = tempdir().unwrap();
    expect_error(
        &server.hub(home.path(), &[]),
        "hf:org/tiny",
        ErrorCode::ModelMalformed,
        &["is not the name of a .safetensors file"],
    );
}
