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

// seal returns the proof of an upload for the address that its caller gets:
// base64url of the JSON, a dot, and an HMAC over it and the upload's id.
func (g *Gate) sealUpload(id string, u uploadProof) string {
	b, _ := json.Marshal(u) // of strings alone
	text := base64.RawURLEncoding.EncodeToString(b)
	return text + "." + g.mac("verbatim/upload/1", id, text)
}

func (g *Gate) openUpload(id, proof string) (u uploadProof, ok bool) {
	text, mac, _ := strings.Cut(proof, ".")
	if !hmac.Equal([]byte(mac), []byte(g.mac("verbatim/upload/1", id, text))) {
		return u, false
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	return u, err == nil && json.Unmarshal(b, &u) == nil
}

// begins makes the plan of an upload's start put the proof into its address.
func (g *Gate) begins(p *plan, owner bigquery.Owner) {
	if p.route.Upload != bigquery.UploadStart || p.facts.Destination == nil {
		return
	}
	u := uploadProof{owner, *p.facts.Destination}
	p.sealUpload = func(id string) string { return g.sealUpload(id, u) }
}

// resume reads what a chunk of an upload belongs to: the job stood in the
// request that began it. Whose it is comes before the policy, whose reasons may
// name the destination.
func (g *Gate) resume(p *plan) *refusal {
	u, ok := g.openUpload(p.route.UploadID, p.route.UploadProof)
	if !ok || !isOneOf(u.Owner, ownersOf(p.identity)) {
		return notOwned("upload")
	}
	p.facts.JobType, p.facts.Destination = bigquery.JobLoad, &u.Destination
	return nil
}
