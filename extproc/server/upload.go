package server

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"strings"

	"verbatim.dev/extproc/bigquery"
)

// uploadProof stands in the address of a resumable upload, so that every replica
// knows whose the upload is and where its rows go: BigQuery's upload ids say
// nothing, and a chunk carries no job.
type uploadProof struct {
	Owner       bigquery.Owner `json:"o"`
	Destination bigquery.Table `json:"d"`
}

// sealed returns what is stated about a name that BigQuery gave out, for the
// caller to bring back: base64url of the JSON, a dot, and an HMAC over it and the
// name. kind keeps one use of it from passing for another.
func (g *Gate) sealed(kind, name string, stated any) string {
	b, _ := json.Marshal(stated) // of strings alone
	text := base64.RawURLEncoding.EncodeToString(b)
	return text + "." + g.mac(kind, name, text)
}

// opened reads what sealed wrote into stated, and reports whether it did.
func (g *Gate) opened(kind, name, proof string, stated any) bool {
	text, mac, _ := strings.Cut(proof, ".")
	if !hmac.Equal([]byte(mac), []byte(g.mac(kind, name, text))) {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	return err == nil && json.Unmarshal(b, stated) == nil
}

const kindUpload = "verbatim/upload/1"

// starts makes the plan of an upload's start put the proof into its address.
func (g *Gate) starts(p *plan) {
	if p.facts.Destination == nil {
		return
	}
	to := *p.facts.Destination
	p.begins = func(owner bigquery.Owner) {
		p.sealUpload = func(id string) string { return g.sealed(kindUpload, id, uploadProof{owner, to}) }
	}
}

// resume reads what a chunk of an upload belongs to: the job stood in the
// request that began it. Whose it is comes before the policy, whose reasons may
// name the destination.
func (g *Gate) resume(p *plan) *refusal {
	var u uploadProof
	if !g.opened(kindUpload, p.route.UploadID, p.route.UploadProof, &u) || !isOneOf(u.Owner, ownersOf(p.identity)) {
		return notOwned("upload")
	}
	p.facts.JobType, p.facts.Destination = bigquery.JobLoad, &u.Destination
	return nil
}
