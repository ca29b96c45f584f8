package directreads

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind is what was done.
type Kind string

// The kinds.
const (
	// Read is of an object's bytes.
	Read Kind = "read"
	// List is of a bucket's names, which tell gateways, epochs and times.
	List Kind = "list"
	// Decrypt is of a key in Cloud KMS: of wrapped data keys, or of a keyset.
	Decrypt Kind = "decrypt"
	// Secret is of a secret's value: a keyset that rests in Secret Manager.
	Secret Kind = "secret"
	other  Kind = ""
)

// Entry is what an entry of Cloud Audit Logs says.
type Entry struct {
	Kind    Kind
	Method  string
	Service string
	// Bucket and Object are of Cloud Storage. Resource is a key of Cloud KMS
	// without its version (projects/P/locations/L/keyRings/R/cryptoKeys/K), or a
	// secret (projects/P/secrets/S); P may be a number.
	Bucket, Object, Resource string
	// Account is who did it: an e-mail address, or a principal's name; empty where
	// Google does not say, as for public objects.
	Account string
	// By is who acted as the account, where it was impersonated.
	By     string
	Caller string // IP address
	Agent  string // user agent
	Time   time.Time
	// Refused says that it was not allowed to.
	Refused bool
	ID      string // insertId: the same entry may be exported twice
}

// wire is an entry as Cloud Logging writes it, into files and buckets
// (protoPayload) and by its sinks into BigQuery (protopayload_auditlog):
// https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry and
// https://cloud.google.com/logging/docs/reference/audit/auditlog/rest/Shared.Types/AuditLog.
type wire struct {
	Payload   *auditLog `json:"protoPayload"`
	InTable   *auditLog `json:"protopayload_auditlog"`
	InsertID  string    `json:"insertId"`
	Timestamp time.Time `json:"timestamp"`
	Resource  struct {
		Labels map[string]any `json:"labels"`
	} `json:"resource"`
}

type auditLog struct {
	Service string `json:"serviceName"`
	Method  string `json:"methodName"`
	Name    string `json:"resourceName"`
	Status  *struct {
		Code int `json:"code"`
	} `json:"status"`
	Who struct {
		Email      string `json:"principalEmail"`
		Subject    string `json:"principalSubject"`
		Delegation []struct {
			First struct {
				Email string `json:"principalEmail"`
			} `json:"firstPartyPrincipal"`
			Subject string `json:"principalSubject"`
		} `json:"serviceAccountDelegationInfo"`
	} `json:"authenticationInfo"`
	Request struct {
		IP    string `json:"callerIp"`
		Agent string `json:"callerSuppliedUserAgent"`
	} `json:"requestMetadata"`
}

var errForm = errors.New("is no entry of Cloud Audit Logs: want protoPayload with serviceName, methodName and a timestamp")

// Parse reads an entry, a JSON object.
func Parse(b []byte) (Entry, error) {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return Entry{}, fmt.Errorf("is not JSON of the form: %w", err)
	}
	a := w.Payload
	if a == nil {
		a = w.InTable
	}
	if a == nil || a.Service == "" || a.Method == "" || w.Timestamp.IsZero() {
		return Entry{}, errForm
	}
	e := Entry{Service: a.Service, Method: a.Method, Account: a.Who.Email, Caller: a.Request.IP, Agent: a.Request.Agent, Time: w.Timestamp.UTC(), ID: w.InsertID}
	if e.Account == "" {
		e.Account = a.Who.Subject
	}
	for _, d := range a.Who.Delegation { // the last is nearest to the account
		if e.By = d.First.Email; e.By == "" {
			e.By = d.Subject
		}
	}
	e.Refused = a.Status != nil && a.Status.Code != 0
	switch a.Service {
	case "storage.googleapis.com":
		rest, ok := strings.CutPrefix(a.Name, "projects/_/buckets/")
		if !ok {
			return e, nil // of a project
		}
		e.Bucket, e.Object, _ = strings.Cut(rest, "/objects/")
		switch a.Method {
		case "storage.objects.get":
			e.Kind = Read
		case "storage.objects.list":
			e.Kind = List
		}
	case "cloudkms.googleapis.com":
		e.Resource, _, _ = strings.Cut(a.Name, "/cryptoKeyVersions/")
		switch lastPart(a.Method) {
		case "Decrypt", "AsymmetricDecrypt", "RawDecrypt", "Decapsulate":
			e.Kind = Decrypt
		}
	case "secretmanager.googleapis.com":
		e.Resource, _, _ = strings.Cut(a.Name, "/versions/")
		if lastPart(a.Method) == "AccessSecretVersion" {
			e.Kind = Secret
		}
	}
	return e, nil
}

// lastPart is a method's own name: some services write it with its package.
func lastPart(method string) string { return method[strings.LastIndexByte(method, '.')+1:] }
