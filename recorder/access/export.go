package access

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/tink-crypto/tink-go/v2/keyset"

	"verbatim.dev/recorder/bundle"
	"verbatim.dev/recorder/reconcile"
	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// maxJobs is how many jobs of a list are held at once, 600 bytes each.
const maxJobs = 250_000

// ExportRequest asks for a bundle of evidence. Why must be given.
type ExportRequest struct {
	Why       string    `json:"why"`
	Exchange  string    `json:"exchange,omitempty"`
	Session   string    `json:"session,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Until     time.Time `json:"until,omitzero"`
	NoPayload bool      `json:"no_payload,omitempty"`
}

// NewExportRequest asks for a selection.
func NewExportRequest(s bundle.Selection, noPayload bool, why string) ExportRequest {
	return ExportRequest{Why: why, Exchange: s.Exchange, Session: s.Session, Since: s.Since, Until: s.Until, NoPayload: noPayload}
}

func (r *ExportRequest) selection() (bundle.Selection, error) {
	s := bundle.Selection{Exchange: r.Exchange, Session: r.Session, Since: r.Since, Until: r.Until}
	ranged := !s.Since.IsZero() || !s.Until.IsZero()
	switch {
	case s.Exchange == "" && s.Session == "" && !ranged:
		return s, errors.New("export: nothing is selected")
	case s.Exchange != "" && (s.Session != "" || ranged):
		return s, errors.New("export: exchange stands alone")
	case s.Exchange == "":
		return s, nil
	}
	id, err := record.ParseID(s.Exchange)
	s.Exchange = id.String()
	return s, err
}

// What is the request as its access record tells it.
func (r *ExportRequest) What() record.AccessTo {
	f := map[string]string{}
	for name, v := range map[string]string{"session": r.Session, "since": stamp(r.Since), "until": stamp(r.Until)} {
		if v != "" {
			f[name] = v
		}
	}
	if r.NoPayload {
		f["no_payload"] = "true"
	}
	return record.AccessTo{Action: ActionExport, Exchange: r.Exchange, Filter: f}
}

// ReconcileRequest begins the body of a reconciliation: one line of JSON, which
// the list of jobs follows, an entry a line.
type ReconcileRequest struct {
	Why       string    `json:"why,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Until     time.Time `json:"until,omitzero"`
	Projects  []string  `json:"projects,omitempty"`
	Locations []string  `json:"locations,omitempty"`
	Accounts  []string  `json:"accounts,omitempty"`
	Others    []string  `json:"others,omitempty"`
	Margin    string    `json:"margin,omitempty"` // a duration, 5m
	Limit     int       `json:"limit"`
}

// NewReconcileRequest asks for what a configuration asks for.
func NewReconcileRequest(c reconcile.Config, why string) ReconcileRequest {
	return ReconcileRequest{
		Why: why, Since: c.Since, Until: c.Until, Projects: c.Projects, Locations: c.Locations, Accounts: c.Accounts, Others: c.Others,
		Margin: c.Margin.String(), Limit: c.Limit,
	}
}

// What is the request as its access record tells it.
func (r *ReconcileRequest) What() record.AccessTo {
	f := map[string]string{}
	for name, v := range map[string]string{"since": stamp(r.Since), "until": stamp(r.Until)} {
		if v != "" {
			f[name] = v
		}
	}
	for name, list := range map[string][]string{"projects": r.Projects, "locations": r.Locations} {
		if len(list) > 0 {
			f[name] = fmt.Sprint(list)
		}
	}
	return record.AccessTo{Action: ActionReconcile, Filter: f}
}

// Found are the exchanges that a report tells something of.
func Found(r *reconcile.Report) []string {
	var ids []string
	seen := map[string]bool{}
	for _, f := range r.Findings {
		if f.Exchange != "" && !seen[f.Exchange] {
			seen[f.Exchange] = true
			ids = append(ids, f.Exchange)
		}
	}
	return ids
}

// granted records that these are given out, in records of at most partRecords.
func (c *call) granted(what record.AccessTo, why string, ids []string) (first record.ID, err error) {
	for n := 0; n == 0 || len(ids) > 0; n++ {
		a := c.access(what, why)
		a.Allowed, a.Part, a.Records = true, n, ids[:min(len(ids), partRecords)]
		if n > 0 {
			a.Of = first.String()
		}
		ids = ids[len(a.Records):]
		id, err := c.record(a)
		if err != nil {
			return first, err
		}
		if n == 0 {
			first = id
		}
	}
	return first, nil
}

// sent is an answer of bytes: its head goes with the first of them.
type sent struct {
	c     *call
	of    record.ID // the access record
	sum   hash.Hash
	begun bool
}

func (s *sent) begin(kind string) {
	s.begun = true
	h := s.c.w.Header()
	h.Set(headerAccess, s.of.String())
	h.Set("Content-Type", kind)
	h.Set("Content-Disposition", "attachment")
	h.Set("Trailer", trailerEnd+", "+trailerNote)
}

func (s *sent) Write(b []byte) (int, error) {
	if !s.begun {
		s.begin("application/zip")
	}
	s.c.deadline()
	s.sum.Write(b)
	if n, err := s.c.w.Write(b); err != nil {
		return n, errLeft
	}
	return len(b), nil
}

func (c *call) export() error {
	var req ExportRequest
	if err := c.body(&req); err != nil {
		return err
	}
	selection, err := req.selection()
	if err != nil {
		return badRequest(err)
	}
	what := req.What()
	if err := c.auditors(what, req.Why, "your role does not export evidence"); err != nil {
		return err
	}
	if err := c.reason(what, req.Why, true); err != nil {
		return err
	}
	var tenant *keyset.Handle
	if c.s.c.Tenant != nil {
		tenant = c.s.c.Tenant()
	}
	out := &sent{c: c, sum: sha256.New()}
	stats, err := bundle.Write(c.r.Context(), bundle.Config{
		Vault: c.s.c.Vault, Tenant: tenant, Selection: selection, NoPayload: req.NoPayload, Now: c.s.c.Now(),
		Chosen: func(_ context.Context, ids []string) (err error) {
			out.of, err = c.granted(what, req.Why, ids)
			return err
		},
	}, out)
	switch {
	case errors.Is(err, errLeft):
		return nil
	case errors.Is(err, bundle.ErrNothing), errors.Is(err, search.ErrNotFound), errors.Is(err, search.ErrAccess):
		// That nothing is there is an answer too.
		if _, err := c.granted(what, req.Why, nil); err != nil {
			return err
		}
		return &Error{Status: http.StatusNotFound, Code: CodeNotFound, Message: err.Error()}
	case err != nil && !out.begun:
		return err
	}
	end, note := endWhole, ""
	if err != nil {
		c.s.log.Error("access: failed", "action", c.action, "error", err)
		end = strconv.QuoteToASCII("the vault could not be read to the end: the service's log says why")
	} else if len(stats.DataKeys) > 0 {
		note = "whoever erases a key that the bundle holds is not told of the bundle: the service registers none"
		if c.s.c.Exported != nil {
			note = ""
			p := c.reader.Principal
			if err := c.s.c.Exported(c.r.Context(), p.Issuer+"/"+p.Subject, hex.EncodeToString(out.sum.Sum(nil)), stats.DataKeys); err != nil {
				c.s.log.Error("access: the bundle is not registered", "access", out.of.String(), "error", err)
				note = "the bundle is not registered in the vault: an erasure will not list it"
			}
		}
	}
	c.w.Header().Set(trailerEnd, end)
	if note != "" {
		c.w.Header().Set(trailerNote, strconv.QuoteToASCII(note))
	}
	c.deadline()
	return nil
}

// patient gives whoever sends time for each piece, however long the whole takes.
type patient struct {
	c *call
}

func (p patient) Read(b []byte) (int, error) {
	_ = p.c.control.SetReadDeadline(time.Now().Add(p.c.s.c.Stall)) // recorders of tests have none
	return p.c.r.Body.Read(b)
}

func (c *call) reconcile() error {
	in := bufio.NewReaderSize(patient{c}, maxRequest)
	head, err := in.ReadSlice('\n')
	if err != nil {
		return badRequest(fmt.Errorf("the body does not begin with a line of JSON of at most %d bytes", maxRequest))
	}
	var req ReconcileRequest
	if err := strict(head, &req); err != nil {
		return badRequest(err)
	}
	margin := time.Duration(0)
	if req.Margin != "" {
		if margin, err = time.ParseDuration(req.Margin); err != nil || margin <= 0 {
			return badRequest(fmt.Errorf("margin %q: want a duration above 0", req.Margin))
		}
	}
	if req.Limit < 0 {
		return badRequest(fmt.Errorf("limit %d: want 0 (all) or more", req.Limit))
	}
	what := req.What()
	if err := c.auditors(what, req.Why, "your role does not reconcile: what differs is told with its SQL"); err != nil {
		return err
	}
	if err := c.reason(what, req.Why, false); err != nil {
		return err
	}
	cfg, err := c.config(func(err error) { c.s.log.Warn("access: the vault is damaged", "error", err) })
	if err != nil {
		return err
	}
	r, err := reconcile.Run(c.r.Context(), reconcile.Config{
		Vault: cfg.Vault, Keys: cfg.Keys, Warn: cfg.Warn, Jobs: reconcile.Lines(in), Since: req.Since, Until: req.Until, Projects: req.Projects,
		Locations: req.Locations, Accounts: req.Accounts, Others: req.Others, Margin: margin, Limit: req.Limit, MaxJobs: maxJobs, Now: c.s.c.Now,
	})
	switch {
	case errors.Is(err, reconcile.ErrTooMany):
		return &Error{Status: http.StatusUnprocessableEntity, Code: CodeMemory, Message: fmt.Sprintf("the list holds more than %d jobs: use a narrower time", maxJobs)}
	case errors.Is(err, reconcile.ErrList):
		return badRequest(err)
	case err != nil:
		return err
	}
	of, err := c.granted(what, req.Why, Found(r))
	if err != nil {
		return err
	}
	c.w.Header().Set(headerAccess, of.String())
	return c.json(r)
}

// Export writes a bundle. What it wrote is right only where it returns nil;
// note is what is to be known of it then.
func (c *Client) Export(ctx context.Context, req ExportRequest, w io.Writer) (note string, err error) {
	res, err := c.do(ctx, http.MethodPost, "/v1/export", req)
	if err != nil {
		return "", notFound(err)
	}
	return c.bytes(res, w)
}

// Reconcile sends a list of jobs, and returns the service's report.
func (c *Client) Reconcile(ctx context.Context, req ReconcileRequest, jobs reconcile.Source) (*reconcile.Report, error) {
	head, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	defer r.Close()
	listed := make(chan error, 1)
	go func() {
		err := sendJobs(ctx, w, head, jobs)
		listed <- err
		_ = w.CloseWithError(err) // never fails; nil is the end of the list
	}()
	res, err := c.send(ctx, http.MethodPost, "/v1/reconcile", r)
	if err != nil {
		_ = r.CloseWithError(err)
		// Where the list failed, that is why.
		if own := <-listed; own != nil && errors.Is(own, reconcile.ErrList) {
			return nil, own
		}
		return nil, err
	}
	defer res.Body.Close()
	var report reconcile.Report
	if err := json.NewDecoder(io.LimitReader(res.Body, maxLine)).Decode(&report); err != nil {
		return nil, fmt.Errorf("%s: its answer was cut off or is none: %w", c.base, err)
	}
	return &report, nil
}

// sendJobs writes entries as lines, each at the line of its number.
func sendJobs(ctx context.Context, to io.Writer, head []byte, jobs reconcile.Source) error {
	w := bufio.NewWriterSize(to, 64<<10)
	if _, err := w.Write(append(head, '\n')); err != nil {
		return err
	}
	next := int64(1)
	err := jobs(ctx, func(number int64, entry []byte) error {
		for ; next < number; next++ {
			if err := w.WriteByte('\n'); err != nil {
				return err
			}
		}
		for _, b := range entry {
			if b == '\n' || b == '\r' { // between tokens, where it is JSON
				b = ' '
			}
			if err := w.WriteByte(b); err != nil {
				return err
			}
		}
		next++
		return w.WriteByte('\n')
	})
	if err != nil {
		return err
	}
	return w.Flush()
}
