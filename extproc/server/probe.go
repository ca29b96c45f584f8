package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"verbatim.dev/extproc/credential"
	"verbatim.dev/recorder/record"
)

// maxProbe is the largest answer to a call of the gateway's own, in bytes.
const maxProbe = 4 << 20

// probe returns the prober of an exchange. The first probe makes a received
// record durable before BigQuery is asked anything.
func (s *Server) probe(x *exchange) prober {
	return func(ctx context.Context, purpose, method, path string, asked []byte) (int, []byte, error) {
		if x.id.Sequence == 0 {
			d := x.draft()
			d.Kind = record.KindReceived
			received := record.Received{Session: x.plan.session, At: x.req.received.UTC(), Call: x.plan.call}
			if x.plan.identity != nil {
				received.Principal = &x.plan.identity.Principal
			}
			d.Render = func(record.ID) ([]byte, error) { return record.Marshal(received) }
			t := s.cfg.Recorder.Append(d)
			if err := t.Wait(ctx); err != nil {
				return 0, nil, fmt.Errorf("received record: %w", err)
			}
			x.id, x.receipt = t.ID, t.Receipt
		}
		p := record.Probe{At: s.cfg.Now().UTC(), Purpose: purpose, Method: method, Path: path, Request: asked}
		status, body, err := ask(ctx, x.plan.conn, credential.Caller{Session: x.plan.session, Principal: x.plan.identity.Principal}, method, path, asked)
		note(&p, status, body, err)
		d := x.draft()
		d.Kind = record.KindProbe
		d.Render = func(record.ID) ([]byte, error) { return record.Marshal(p) }
		if werr := s.cfg.Recorder.Append(d).Wait(ctx); werr != nil {
			return 0, nil, fmt.Errorf("probe record: %w", werr)
		}
		return status, body, err
	}
}

// ask makes a call with the connection's own credential.
func ask(ctx context.Context, c *Connection, caller credential.Caller, method, path string, asked []byte) (int, []byte, error) {
	token, err := c.Credential.Token(ctx, caller)
	if err != nil {
		return 0, nil, fmt.Errorf("credential: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.REST, "/")+path, bytes.NewReader(asked))
	if err != nil {
		return 0, nil, errors.New("the call's address is malformed")
	}
	req.Header.Set("Authorization", "Bearer "+token.Value)
	req.Header.Set("Accept", "application/json")
	if asked != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.Client.Do(req)
	if err != nil {
		return 0, nil, fmt.Errorf("%s %s: no answer: %w", method, c.REST, errors.Unwrap(err))
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxProbe+1))
	if err != nil {
		return 0, nil, errors.New("the answer broke off")
	}
	if len(body) > maxProbe {
		return 0, nil, fmt.Errorf("the answer is larger than %d bytes", maxProbe)
	}
	return res.StatusCode, body, nil
}

func note(p *record.Probe, status int, body []byte, err error) {
	p.Status = status
	if err != nil {
		p.Error = err.Error()
	}
	if json.Valid(body) {
		p.Response = body
	}
}

// Cancel asks BigQuery to cancel the running jobs of revoked callers, each
// call on record first, and returns how many it could cancel. It is the second
// half of the kill switch: ending an exchange does not end its job.
func (s *Server) Cancel(ctx context.Context, g *Gate, jobs []RunningJob) int {
	n := 0
	for _, j := range jobs {
		if err := s.cancel(ctx, g, j); err != nil {
			s.cfg.Logger.Error("job of a revoked caller not cancelled", "job", j.Job.String(), "error", err)
			continue
		}
		n++
	}
	return n
}

func (s *Server) cancel(ctx context.Context, g *Gate, j RunningJob) error {
	conn := g.connection(j.Job.Project)
	if conn == nil {
		return errors.New("no connection lists its project any more")
	}
	ctx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	p := &plan{conn: conn, identity: j.Identity, session: j.Session, class: conn.Retention,
		call: record.Call{Method: "bigquery.jobs.cancel", Project: j.Job.Project, Job: &j.Job}}
	x := &exchange{plan: p, req: &request{received: s.cfg.Now()}, now: s.cfg.Now, up: newLane(0), sent: newLane(0), down: newLane(0)}
	probe := s.probe(x)
	var err error
	status := 0
	if j.Asked { // its caller may have named another's
		var job *jobResource
		var owns bool
		if job, err = g.askJob(ctx, &j.Job, probe); err == nil {
			_, owns, err = g.madeBy(ctx, p, job, ownersOf(j.Identity), probe)
		}
		if err == nil && !owns {
			err = errors.New("it is not known to be the caller's own")
		}
	}
	if err == nil {
		status, _, err = probe(ctx, "cancel of a revoked caller's job", http.MethodPost, jobPath(&j.Job, "/cancel", nil), nil)
	}
	if x.id.Sequence == 0 {
		return err
	}
	result, cause := record.ResultDelivered, "revoked"
	if err != nil || status >= 300 {
		result, cause = record.ResultAborted, "cancel failed"
	}
	x.status = status
	if werr := s.cfg.Recorder.Append(x.outcomeDraft(result, cause)...).Wait(ctx); werr != nil {
		return errors.Join(err, werr)
	}
	if err == nil && status >= 300 {
		err = fmt.Errorf("jobs.cancel answered %d", status)
	}
	if err == nil {
		g.Jobs.Ended(j.Job)
	}
	return err
}
