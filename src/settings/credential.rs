//! Which options of an archive are credentials, by their names: those of the variables of AWS, Google and Azure, as the
//! `object_store` crate reads them. A name that it does not know yet is judged by its words.

use super::SecretSource;
use super::redis::passwords_of;
use crate::secret::Secret;

/// The beginnings of the names of the variables.
pub const VARIABLES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// Names with one of these words are of secrets.
const WORDS: [&str; 4] = ["key", "password", "secret", "token"];

/// But names with one of these at their end are not.
const ENDS: [&str; 8] = ["enabled", "endpoint", "id", "name", "path", "type", "uri", "url"];

/// Options that name a file of credentials. The token of a file may be rotated at any time.
const FILES: [&str; 4] = ["_token_file", "service_account", "service_account_path", "application_credentials"];

/// Where the credential is that an option holds or leads to.
pub fn credential(name: &str, value: &Secret) -> Option<SecretSource> {
    let name = name.to_ascii_lowercase();
    if FILES.iter().any(|end| name.ends_with(end)) {
        return Some(SecretSource::File(value.expose().into()));
    }
    if name.ends_with("proxy_url") {
        return passwords_of(value).into_iter().next().map(SecretSource::Value);
    }
    is_secret(&name).then(|| SecretSource::Value(value.clone()))
}

/// Whether an option or a field with this name has a secret as its value.
pub fn is_secret(name: &str) -> bool {
    let mut words = name.split('_');
    words.clone().any(|word| WORDS.contains(&word)) && !words.next_back().is_some_and(|word| ENDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `AWS_…`, `AZURE_…` and `GOOGLE_…`, with the other names of the same options.
    #[test]
    fn every_credential_that_the_archive_reads_is_known() {
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "secret_access_key",
            "aws_session_token",
            "AWS_TOKEN",
            "token",
            "aws_sse_customer_key_base64",
            "AZURE_STORAGE_ACCOUNT_KEY",
            "AZURE_STORAGE_ACCESS_KEY",
            "azure_storage_master_key",
            "account_key",
            "access_key",
            "AZURE_CLIENT_SECRET",
            "azure_storage_client_secret",
            "AZURE_STORAGE_SAS_TOKEN",
            "azure_storage_sas_key",
            "azure_storage_token",
            "bearer_token",
            "azure_fabric_session_token",
            "azure_storage_encryption_key",
            "GOOGLE_SERVICE_ACCOUNT_KEY",
            "google_bearer_token",
        ] {
            let found = credential(name, &Secret::new("x"));
            assert!(matches!(found, Some(SecretSource::Value(_))), "{name}");
        }
        for name in [
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "aws_container_authorization_token_file",
            "AZURE_FEDERATED_TOKEN_FILE",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "google_service_account",
            "service_account_path",
        ] {
            assert!(matches!(credential(name, &Secret::new("/x")), Some(SecretSource::File(_))), "{name}");
        }
        let proxy = credential("aws_proxy_url", &Secret::new("http://user:hunter2@proxy:3128"));
        assert!(matches!(proxy, Some(SecretSource::Value(password)) if password.expose() == "hunter2"));
    }

    #[test]
    fn ordinary_options_are_not_secrets() {
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_REGION",
            "AWS_ENDPOINT_URL",
            "aws_sse_kms_key_id",
            "aws_sse_bucket_key_enabled",
            "AWS_ROLE_SESSION_NAME",
            "aws_skip_signature",
            "AZURE_STORAGE_ACCOUNT_NAME",
            "azure_fabric_token_service_url",
            "azure_credential_type",
            "AZURE_KEYVAULT_NAME",
            "AZURE_TENANT_ID",
            "google_proxy_url",
            "google_bucket",
        ] {
            assert!(credential(name, &Secret::new("http://proxy:3128")).is_none(), "{name}");
        }
    }
}
