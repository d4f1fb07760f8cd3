//! The connection to a coordinator that the command line describes.

use crate::args::ConnectionArgs;
use ballast_proto::security::{ClientSecurity, SecurityFile, Token};
use ballast_proto::{ErrorCode, Failure};

/// Variable of the environment that holds a token. It is no option of clap, whose help would show its value.
pub(crate) const TOKEN: &str = "BALLAST_TOKEN";

/// What the arguments and the environment say about trust. A token file counts before the environment.
pub(crate) fn security(args: &ConnectionArgs) -> Result<ClientSecurity, Failure> {
    let token = match &args.token_file {
        Some(path) => Some(Token::load(SecurityFile::new("--token-file", path))?),
        None => of_environment()?,
    };
    Ok(ClientSecurity {
        ca: args.ca.clone(),
        certificate: args.certificate.clone(),
        private_key: args.private_key.clone(),
        server_name: args.server_name.clone(),
        token,
        insecure: args.insecure,
    })
}

fn of_environment() -> Result<Option<Token>, Failure> {
    let refuse = |why: &str| Failure::new(ErrorCode::SecurityFile, format!("the environment variable {TOKEN}: {why}"));
    match std::env::var(TOKEN) {
        Ok(text) => Token::parse(text.trim()).map(Some).map_err(|why| refuse(&why)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(refuse("it is not text")),
    }
}
