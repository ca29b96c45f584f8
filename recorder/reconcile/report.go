package reconcile

import (
	"time"
)

// Code says what is wrong. Codes are stable.
type Code string

// The codes of findings.
const (
	// NoRecord: a job of the gateway's account, or of anybody where no account
	// was given, that no record tells of: a bypass.
	NoRecord Code = "no_record"
	// OutsideGateway: a job of another identity that no record tells of: a bypass.
	OutsideGateway Code = "outside_gateway"
	// DeniedExecuted: a job whose id only a denied request named.
	DeniedExecuted Code = "denied_executed"
	// DryRunExecuted: a job whose id only a dry run named.
	DryRunExecuted Code = "dry_run_executed"
	// NoJob: a record says that BigQuery made the job, and it is not in the list.
	NoJob Code = "no_job"
	// SQLDiffers: BigQuery ran other SQL than the record says went upstream.
	SQLDiffers Code = "sql_differs"
	// LabelsDiffer: the job has not the labels that the gateway wrote.
	LabelsDiffer Code = "labels_differ"
	// AccountDiffers: the job, or a statement of its script, ran as another than
	// the gateway's identity.
	AccountDiffers Code = "account_differs"
	// SourcesDiffer: two entries of the list have different SQL for one job.
	SourcesDiffer Code = "sources_differ"
	// JobDeleted: somebody deleted a job's metadata from BigQuery.
	JobDeleted Code = "job_deleted"
	// NotUnderstood: an entry of the list could not be read; it may be a job.
	NotUnderstood Code = "not_understood"
)

// Finding is one thing that is wrong.
type Finding struct {
	Code     Code       `json:"code"`
	Job      string     `json:"job,omitempty"` // PROJECT:LOCATION.ID
	Created  *time.Time `json:"created,omitempty"`
	Account  string     `json:"account,omitempty"` // who ran the job, as BigQuery says
	Exchange string     `json:"exchange,omitempty"`
	Session  string     `json:"session,omitempty"`
	// SQL and Recorded are the beginnings of what BigQuery ran and of what the
	// record says went upstream.
	SQL      string `json:"sql,omitempty"`
	Recorded string `json:"recorded_sql,omitempty"`
	// Basis says what Recorded is: the upstream payload, or the request, where
	// no other text went upstream or its payload is not on record.
	Basis  string `json:"basis,omitempty"`
	Line   int64  `json:"line,omitempty"` // of the list, from 1
	Detail string `json:"detail"`
}

// Report is the outcome of a comparison. Its JSON field names are stable and
// explained in recorder/README.md.
type Report struct {
	Since  *time.Time `json:"since,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
	Margin string     `json:"margin"`
	// From and To are the times of the first and last job that was compared.
	From *time.Time `json:"first_job,omitempty"`
	To   *time.Time `json:"last_job,omitempty"`

	// Complete: every job has its record, every record its job, all alike, and
	// the whole list was understood.
	Complete bool `json:"complete"`
	// Coverage is Recorded of Jobs in percent, nil where there are no jobs.
	Coverage *float64 `json:"coverage_percent"`

	Jobs     int64 `json:"jobs"`     // compared, without scripts' children
	Recorded int64 `json:"recorded"` // of them, with a record
	ByLabels int64 `json:"recorded_by_labels"`
	Children int64 `json:"children"` // statements of scripts, which count with their script

	SQLCompared    int64 `json:"sql_compared"`
	SQLNotCompared int64 `json:"sql_not_compared"` // one side does not hold the text
	// LabelsNotCompared counts jobs whose entries hold no labels.
	LabelsNotCompared int64 `json:"labels_not_compared"`

	// Not compared, and why.
	OutsideWindow   int64            `json:"outside_window"`
	Unsettled       int64            `json:"unsettled"`        // so new that the record or the job may be on its way
	Background      int64            `json:"background"`       // BigQuery's own
	ListedDryRuns   int64            `json:"listed_dry_runs"`  // the list says that they did not run
	OtherAccounts   map[string]int64 `json:"other_accounts"`   // jobs without a record, by account, that were said not to matter
	UnboundAccounts bool             `json:"accounts_unbound"` // no gateway account was given

	List  ListReport  `json:"list"`
	Vault VaultReport `json:"vault"`

	Counts   map[Code]int64 `json:"counts"`
	Findings []Finding      `json:"findings"`
	More     int64          `json:"more_findings"` // beyond the limit
}

// ListReport says what the job list was.
type ListReport struct {
	Entries int64            `json:"entries"`
	Forms   map[Form]int64   `json:"forms"`
	Jobs    int64            `json:"jobs"`
	Events  map[string]int64 `json:"other_events,omitempty"`
	Unknown int64            `json:"not_understood"`
}

// VaultReport says what the vault was.
type VaultReport struct {
	Segments    int64      `json:"segments"`
	Exchanges   int64      `json:"exchanges"`
	JobRequests int64      `json:"job_requests"`
	Denied      int64      `json:"denied"`
	DryRuns     int64      `json:"dry_runs"`
	Unreadable  int64      `json:"unreadable"` // records whose key is gone
	Warnings    int64      `json:"warnings"`   // damage that was passed over
	Last        *time.Time `json:"last_record,omitempty"`
}

// add notes a finding.
func (r *Report) add(limit int, f Finding) {
	r.Counts[f.Code]++
	if limit > 0 && len(r.Findings) >= limit {
		r.More++
		return
	}
	r.Findings = append(r.Findings, f)
}
