// Package conformance names every assumption that the code makes about Google's
// services and that cannot be tried without them. Each is a case with a name;
// `make conformance` runs the cases against a real project. Until a case has
// passed there, the README lists it as unproven, and the code denies where the
// assumption fails.
package conformance

// Case is one assumption.
type Case struct {
	Name string
	// Assumption is a sentence that can be true or false.
	Assumption string
	// Where is the code that rests on it.
	Where string
	// Otherwise is what happens where it does not hold.
	Otherwise string
}

// Cases are all assumptions, in the order in which an exchange meets them.
var Cases = []Case{
	{"chunked-request", "BigQuery's REST API takes a JSON body without content-length, in chunks.", "envoy, extproc/server", "every request fails with an error of BigQuery's"},
	{"identity-encoding", "With accept-encoding: identity BigQuery answers without content-encoding.", "extproc/server", "the response is refused (502 response_encoded)"},
	{"standard-sql-forced", "useLegacySql false in the body makes a #standardSQL query of it, and its absence would mean legacy SQL.", "extproc/bigquery", "the dry run of the case shows it"},
	{"labels-on-query", "Labels of jobs.query stand on the job that jobs.get returns.", "extproc/server (ownership)", "polls on another replica are denied (not_owner)"},
	{"labels-on-insert", "Labels of jobs.insert stand on the job that jobs.get returns, for query and load jobs.", "extproc/server (ownership)", "polls on another replica are denied (not_owner)"},
	{"labels-by-fields", "jobs.get?fields=configuration(labels) returns the labels.", "extproc/server (ownership)", "polls on another replica are denied (not_owner)"},
	{"script-children", "jobs.list with parentJobId lists a script's jobs only, and jobs.get of one names the script in statistics.parentJobId.", "extproc/server (ownership)", "the rows of a script's statements are denied (not_owner) in bq; without the filter, jobs.list would show other callers' jobs"},
	{"account", "The answer to a dry run by jobs.insert names the caller's account in user_email, the same as jobs.get does on a job that it ran.", "extproc/server (ownership)", "jobs of another replica, and all jobs of a list, are denied (not_owner)"},
	{"jobs-list-parts", "jobs.list with projection=full and fields=nextPageToken,jobs(...) shows labels, user_email, the destination table and the session of each job of the account, newest first.", "extproc/server (ownership)", "anonymous tables and sessions of another replica are denied (not_owner), and jobs.list is empty"},
	{"session-info", "A jobs.query with createSession names the session in sessionInfo.sessionId, and the job that jobs.get returns in statistics.sessionInfo.", "extproc/server (ownership)", "queries in a session are denied (not_owner)"},
	{"temp-table-first", "In a script, a bare name that is a temporary table's and a table's of the default dataset is the temporary table.", "policy/sql", "a read or write of the default dataset's table counts as one of a temporary table"},
	{"array-path-first", "In FROM, a path whose first word is a range variable before it is an array's, though a dataset of that name holds such a table.", "policy/sql", "a table's read counts as an array's"},
	{"bare-routine", "A bare function name that is no built-in function is a routine of the default dataset, if anything.", "policy/sql", "a routine's call counts as another routine's"},
	{"discovery", "The API's host answers GET /$discovery/rest?version=v2 to the gateway's credential.", "extproc/bigquery", "bq does not start"},
	{"label-limits", "A label value may be 63 characters of [a-z0-9_-]; 52 of lower-case base32 fit.", "extproc/server", "queries fail with an error of BigQuery's"},
	{"maximum-bytes-billed", "maximumBytesBilled below a query's need fails the query before it is billed.", "policy, extproc/bigquery", "a limit of the policy has no effect"},
	{"request-id", "A jobs.query that repeats a requestId is answered with the first one's job; 52 characters are accepted.", "extproc/server", "a client's retry runs its query twice"},
	{"job-creation-required", "jobCreationMode JOB_CREATION_REQUIRED makes a job where OPTIONAL was asked for.", "extproc/server", "an answer names no job, and its pages are denied"},
	{"resumable-location", "The Location of a resumable upload points to the upstream's own host, path /upload/bigquery/v2/projects/P/jobs or its /resumable form, with upload_id.", "extproc/bigquery (RewriteLocation)", "the upload is refused (502 location_foreign)"},
	{"storage-streams", "The Storage Read API names streams projects/P/locations/L/sessions/S/streams/X without a tilde, takes a message that was encoded anew, and answers uncompressed with row_count in each message.", "extproc/bigquery (ParseStorageRead, SealStreams, Frames)", "reading is refused (502 response_unreadable), or the record lacks the number of rows"},
	{"multipart-framing", "A multipart upload whose first part was written anew loads the same rows.", "extproc/bigquery (Part)", "loads fail with an error of BigQuery's"},
	{"cancel", "jobs.cancel with the job's location cancels a running query.", "extproc/server (kill switch)", "the job of a revoked caller runs on; the record says so"},
	{"error-envelope", "Errors of the REST API have error.code, message, errors[].reason and status.", "extproc/bigquery (Scanner)", "the record lacks the error's text"},
	{"integers-as-strings", "int64 fields of answers (totalRows, totalBytesProcessed) are JSON strings or numbers.", "extproc/bigquery (Scanner)", "the record lacks these numbers"},
	{"adc-token", "Application Default Credentials give a token for the scope bigquery.", "extproc/credential", "every request is denied (credential_unavailable)"},
	{"impersonation", "The IAM Credentials API issues a token of a target service account for a caller with roles/iam.serviceAccountTokenCreator.", "extproc/credential", "every request is denied (credential_unavailable)"},
	{"federation", "Google's STS takes an assertion of the gateway's own issuer for the pool's provider, and no token of the callers' issuers.", "extproc/credential", "every request is denied (credential_unavailable)"},
	{"metadata-server", "The metadata server gives a token with expires_in for the default service account.", "extproc/credential", "every request is denied (credential_unavailable)"},
	{"dry-run-tables", "A dry run (jobs.insert) of a query of a view names in statistics.query.referencedTables the tables behind it, whatever the view is called by.", "extproc/server (dry runs)", "a view hides what it reads: the finished job's list is the same, and shows nothing either"},
	{"dry-run-routines", "A dry run names persisted routines in referencedRoutines, and the tables that a SQL function reads in referencedTables.", "extproc/server (dry runs)", "a routine hides what it reads"},
	{"dry-run-target", "A dry run of DML names the table written as configuration.query.destinationTable or ddlTargetTable.", "extproc/server (dry runs in the parser's place)", "DML that the parser cannot read is denied"},
	{"job-tables", "jobs.get of a finished query that was no cache hit has the dry run's referencedTables, right when its first rows are there.", "extproc/server (finished jobs)", "results of queries over views are denied (job_reached_more)"},
	{"gcs-create-only", "A second write with ifGenerationMatch=0 is answered 412, whatever its content, in one request and in chunks.", "recorder/vault/gcs (Create)", "a segment could be replaced by another"},
	{"gcs-retention", "Objects in a bucket's retention can be neither deleted nor replaced: 403 retentionPolicyNotMet.", "recorder/vault/gcs (Init)", "the vault is not write-once"},
	{"gcs-bucket", "A bucket made with the properties of vault init has them, and vault check finds nothing wrong.", "recorder/vault/gcs (Init, Check)", "vault check names the property"},
	{"gcs-list-order", "Names are listed in byte order, right after they were written.", "recorder/vault/gcs (List)", "verify finds segments out of order"},
	{"jobs-view", "INFORMATION_SCHEMA.JOBS_BY_PROJECT holds a query's job within minutes, with the text byte for byte, the labels, and job ids as jobs.query gives them.", "recorder/reconcile", "reconcile reports sql_differs, labels_differ or no_job for jobs that are on record"},
	{"jobs-view-failed", "A jobs.query that BigQuery answers with an error at run time leaves a job in JOBS_BY_PROJECT with the labels and the text.", "recorder/reconcile", "nothing: an error without a job is no finding"},
	{"jobs-view-children", "JOBS_BY_PROJECT holds a script's statements with parent_job_id naming the script's job, and no dry runs.", "recorder/reconcile", "reconcile reports no_record for statements of scripts, or for dry runs"},
	{"data-access-log", "With DATA_READ on, the read of an object stands in the project's Data Access log within minutes: storage.objects.get, projects/_/buckets/BUCKET/objects/NAME, the reader's principal, a time and an insertId.", "recorder/directreads", "accesses reconcile reports not_understood, or log_silent"},
	{"pubsub-setup", "TestIamPermissions answers for topics and subscriptions, and a subscription reads back with its filter, its dead-letter policy and an expiration policy without a time when it never expires.", "recorder/transport/pubsub (Check)", "the start is refused, with a command that repairs nothing"},
	{"pubsub-carry", "Messages of 900 KB with twelve attributes are taken; a filter on an attribute selects answers; what was not acknowledged comes again to the next subscriber within the lease.", "recorder/transport/pubsub", "records stay in the journal, and the gate closes when it is full"},
	{"kms-sign", "AsymmetricSign with an EC_SIGN_ED25519 version signs the text itself (RFC 8032, no digest), and it and GetPublicKey answer with the version's name and the checksums of Google's data integrity guide.", "recorder/kms (Signer, Find)", "gateways do not start, key new and rotate fail; nothing is signed"},
	{"kms-sign-size", "AsymmetricSign takes a text of 64 KiB for an EC_SIGN_ED25519 version.", "recorder/kms (Signer)", "an erasure of hundreds of keys cannot be signed, and is not begun"},
	{"kms-keyset", "Encrypt names the version, Decrypt finds it, both answer with checksums, and associated data is bound.", "recorder/kms (Wrap, Open)", "key new --tenant-kms fails, before a file is written"},
	{"kms-refusals", "A version that is not there is NOT_FOUND, and a changed ciphertext INVALID_ARGUMENT, for an identity that has the right.", "recorder/kms (Error)", "the error hints at another repair"},
}
