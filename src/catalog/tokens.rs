//! Join tokens: who knows the secret of one may add nodes, until it expires or is used up.
//!
//! The catalog knows only the secret's SHA-256. Times come with the commands.

use std::collections::BTreeMap;

use super::{AddJoinToken, Catalog, CatalogAnswer, CatalogError};
use crate::limits::JOIN_TOKENS_MAX;

/// SHA-256 of a token's secret.
pub(super) type SecretHash = [u8; 32];

/// `uses_left` of a token for any number of nodes.
pub const TOKEN_USES_UNLIMITED: u32 = u32::MAX;

/// What is left of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// µs since the epoch.
    pub expires_us: i64,
    /// Nodes that may still join with it; `TOKEN_USES_UNLIMITED`: any number.
    pub uses_left: u32,
}

pub(super) type Tokens = BTreeMap<SecretHash, Token>;

/// A hash of the right length.
pub(super) fn secret_hash(bytes: &[u8]) -> Option<SecretHash> {
    bytes.try_into().ok()
}

impl Catalog {
    /// Join tokens that have not been forgotten yet.
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// Whether a token with that hash exists and has not expired. Used up or not is asked separately: a node that has
    /// joined with its last use may ask again.
    ///
    /// # Errors
    /// `TokenUnknown`.
    pub(super) fn check_token(&self, hash: &[u8], now_us: i64) -> Result<(), CatalogError> {
        let token = secret_hash(hash).and_then(|hash| self.tokens.get(&hash));
        token.filter(|token| token.expires_us > now_us).map(drop).ok_or(CatalogError::TokenUnknown)
    }

    /// Whether another node may join with it.
    pub(super) fn check_token_uses(&self, hash: &[u8]) -> Result<(), CatalogError> {
        let token = secret_hash(hash).and_then(|hash| self.tokens.get(&hash));
        match token {
            Some(Token { uses_left: 0, .. }) => Err(CatalogError::TokenUsedUp),
            Some(_) => Ok(()),
            None => Err(CatalogError::TokenUnknown),
        }
    }

    /// Another node has joined with it; nothing for an empty hash.
    pub(super) fn use_token(&mut self, hash: &[u8]) {
        if let Some(token) = secret_hash(hash).and_then(|hash| self.tokens.get_mut(&hash))
            && token.uses_left != TOKEN_USES_UNLIMITED
        {
            token.uses_left = token.uses_left.checked_sub(1).expect("checked before");
        }
    }

    pub(super) fn forget_expired_tokens(&mut self, now_us: i64) {
        self.tokens.retain(|_, token| token.expires_us > now_us);
    }

    fn new_token(&self, add: &AddJoinToken) -> Result<(SecretHash, Token), CatalogError> {
        let invalid = |what| CatalogError::TokenInvalid { what };
        let token = add.token.as_ref().ok_or(invalid("it is missing"))?;
        let hash = secret_hash(&token.secret_hash).ok_or(invalid("its hash is not a SHA-256"))?;
        if token.uses_left == 0 {
            return Err(invalid("no node could join with it"));
        }
        if token.expires_us <= add.now_us {
            return Err(invalid("it has expired already"));
        }
        // Those that can be used count; the others make room.
        let usable = |(other, token): &(&SecretHash, &Token)| {
            **other != hash && token.uses_left > 0 && token.expires_us > add.now_us
        };
        if self.tokens.iter().filter(usable).count() >= JOIN_TOKENS_MAX {
            return Err(CatalogError::TooManyTokens);
        }
        Ok((hash, Token { expires_us: token.expires_us, uses_left: token.uses_left }))
    }

    pub(super) fn check_add_token(&self, add: &AddJoinToken) -> Result<(), CatalogError> {
        self.new_token(add).map(drop)
    }

    pub(super) fn add_token(&mut self, add: &AddJoinToken) -> Result<CatalogAnswer, CatalogError> {
        let (hash, token) = self.new_token(add)?;
        self.forget_expired_tokens(add.now_us);
        // The same command again (its answer was lost) does not make it usable more often.
        self.tokens.entry(hash).or_insert(token);
        while self.tokens.len() > JOIN_TOKENS_MAX {
            let used_up = self.tokens.iter().filter(|(_, token)| token.uses_left == 0);
            let oldest = used_up.min_by_key(|(_, token)| token.expires_us).map(|(hash, _)| *hash);
            let oldest = oldest.expect("fewer than JOIN_TOKENS_MAX others can be used");
            self.tokens.remove(&oldest);
        }
        Ok(CatalogAnswer::TokenAdded)
    }
}
