package access

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"verbatim.dev/recorder/record"
	"verbatim.dev/recorder/search"
)

// Results are given out in parts, each after a record that names them.
const (
	partRecords = 500
	partBytes   = 1 << 20
	maxWarnings = 5
)

func (c *call) config(warn func(error)) (search.Config, error) {
	keys, err := c.s.c.Keys()
	if err != nil {
		return search.Config{}, err
	}
	return search.Config{Vault: c.s.c.Vault, Keys: keys, Warn: warn}, nil
}

// reason checks why somebody reads; must says that a reason has to be given.
func (c *call) reason(what record.AccessTo, why string, must bool) error {
	if err := CheckWhy(why); err != nil {
		return badRequest(err)
	}
	if must && !given(why) {
		return c.refuse(what, why, &Error{Status: http.StatusForbidden, Code: CodeWhy, Message: "payloads are given out for a reason only: say why"})
	}
	return nil
}

func (c *call) auditors(what record.AccessTo, why, message string) error {
	if c.reader.Role == Auditor {
		return nil
	}
	return c.refuse(what, why, &Error{Status: http.StatusForbidden, Code: CodeRole, Message: message})
}

// parts is an answer of many lines.
type parts struct {
	c        *call
	access   record.Access // what each part's record says
	first    string
	n        int // parts given out
	ids      []string
	held     []byte
	warnings int64
}

func (c *call) parts(what record.AccessTo, why string) *parts {
	a := c.access(what, why)
	a.Allowed = true
	return &parts{c: c, access: *a}
}

func (p *parts) line(l line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	p.held = append(append(p.held, b...), '\n')
	return nil
}

// add holds a result until its part is on record.
func (p *parts) add(id string, l line) error {
	p.ids = append(p.ids, id)
	if err := p.line(l); err != nil {
		return err
	}
	if len(p.ids) >= partRecords || len(p.held) >= partBytes {
		return p.give()
	}
	return nil
}

func (p *parts) warn(err error) {
	if p.warnings++; p.warnings <= maxWarnings {
		_ = p.line(line{Warning: err.Error()}) // of a string
	}
}

// give records what is held and gives it out.
func (p *parts) give() error {
	a := p.access
	a.At, a.Part, a.Of, a.Records = p.c.s.c.Now().UTC(), p.n, p.first, p.ids
	id, err := p.c.record(&a)
	if err != nil {
		return err
	}
	if p.n == 0 {
		p.first = id.String()
		p.c.w.Header().Set("Content-Type", "application/x-ndjson")
		p.c.w.Header().Set(headerAccess, p.first)
	}
	p.n++
	if err := p.send(line{Access: id.String()}); err != nil {
		return err
	}
	p.c.deadline()
	_, err = p.c.w.Write(p.held)
	p.ids, p.held = nil, p.held[:0]
	return p.left(err)
}

// errLeft ends an answer whose reader is gone.
var errLeft = errors.New("the reader left")

func (p *parts) left(err error) error {
	if err == nil {
		err = p.c.control.Flush()
	}
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return errLeft
	}
	return nil
}

// send writes a line that holds nothing of a record.
func (p *parts) send(l line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	p.c.deadline()
	_, err = p.c.w.Write(append(b, '\n'))
	return p.left(err)
}

// end ends the answer: with what is left, or with the error.
func (p *parts) end(e End, err error) error {
	e.Warnings = p.warnings
	if err == nil && (p.n == 0 || len(p.held) > 0) {
		err = p.give() // also where nothing was found: that is an answer too
	}
	switch {
	case err == nil:
		err = p.send(line{End: &e})
		if errors.Is(err, errLeft) {
			return nil
		}
		return err
	case errors.Is(err, errLeft):
		return nil
	case errors.Is(err, search.ErrMemory):
		err = &Error{Status: http.StatusUnprocessableEntity, Code: CodeMemory, Message: "more was found than can be sorted: use narrower filters, a lower limit, or the order stored"}
	}
	var known *Error
	if !errors.As(err, &known) {
		if p.c.r.Context().Err() == nil {
			p.c.s.log.Error("access: failed", "action", p.c.action, "error", err)
		}
		known = &Error{Status: http.StatusInternalServerError, Code: CodeFailed, Message: "the vault could not be read: the service's log says why"}
	}
	if p.n == 0 {
		// That it failed was asked for too, and how may tell something.
		if known.Code != CodeNotRecorded {
			a := p.access
			a.Code = known.Code
			if _, err := p.c.record(&a); err != nil {
				return err
			}
		}
		return known
	}
	_ = p.send(line{Error: known}) // where the reader left there is nobody to tell
	return nil
}

func (c *call) search() error {
	var req SearchRequest
	if err := c.body(&req); err != nil {
		return err
	}
	q, err := req.query()
	if err != nil {
		return badRequest(err)
	}
	q.Memory = c.s.c.Memory
	what := req.What()
	if err := c.reason(what, req.Why, false); err != nil {
		return err
	}
	if q.Secret() {
		if err := c.auditors(what, req.Why, "your role does not search within SQL: leave out sql and table"); err != nil {
			return err
		}
	}
	p := c.parts(what, req.Why)
	cfg, err := c.config(p.warn)
	if err != nil {
		return err
	}
	stats, err := search.Run(c.r.Context(), cfg, q, func(x *search.Exchange) error {
		if c.reader.Role != Auditor {
			x = x.Metadata()
		}
		return p.add(x.ID, line{Exchange: x})
	})
	return p.end(End{Exchanges: stats.Exchanges, Matched: stats.Matched, Unreadable: stats.Unreadable}, err)
}

// errEnough ends a walk.
var errEnough = errors.New("enough")

func (c *call) accesses() error {
	var req AccessesRequest
	if err := c.body(&req); err != nil {
		return err
	}
	f, err := req.filter()
	if err != nil {
		return badRequest(err)
	}
	what := req.What()
	if err := c.reason(what, req.Why, false); err != nil {
		return err
	}
	// A filter stands in them, and so what somebody looked for in the SQL.
	if err := c.auditors(what, req.Why, "your role does not read who read what"); err != nil {
		return err
	}
	p := c.parts(what, req.Why)
	cfg, err := c.config(p.warn)
	if err != nil {
		return err
	}
	var n int64
	err = search.Accesses(c.r.Context(), cfg, f, func(a *search.Access) error {
		n++
		if err := p.add(a.ID, line{Entry: a}); err != nil {
			return err
		}
		if n == int64(req.Limit) {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return p.end(End{Matched: n}, err)
}

// exchange reads an exchange's id.
func exchange(text string) (record.ID, error) {
	id, err := record.ParseID(text)
	if err != nil {
		return id, badRequest(err)
	}
	return id, nil
}

// found makes an error of search one that readers get.
func found(err error) error {
	switch {
	case errors.Is(err, search.ErrNotFound):
		return &Error{Status: http.StatusNotFound, Code: CodeNotFound, Message: err.Error()}
	case errors.Is(err, search.ErrAccess):
		return &Error{Status: http.StatusNotFound, Code: CodeAccess, Message: err.Error()}
	}
	return err
}

func (c *call) show() error {
	var req ShowRequest
	if err := c.body(&req); err != nil {
		return err
	}
	id, err := exchange(req.Exchange)
	if err != nil {
		return err
	}
	what := record.AccessTo{Action: ActionShow, Exchange: id.String()}
	if err := c.reason(what, req.Why, false); err != nil {
		return err
	}
	answer := shown{}
	cfg, err := c.config(func(err error) {
		if len(answer.Warnings) < maxWarnings {
			answer.Warnings = append(answer.Warnings, err.Error())
		}
	})
	if err != nil {
		return err
	}
	of, err := c.allowed(what, req.Why)
	if err != nil {
		return err
	}
	d, err := search.Find(c.r.Context(), cfg, id, nil)
	if err != nil {
		return found(err)
	}
	if c.reader.Role != Auditor {
		d = d.Metadata()
	}
	answer.Access, answer.Detail = of.String(), d
	c.w.Header().Set(headerAccess, answer.Access)
	return c.json(answer)
}

// allowed records that one exchange is given out.
func (c *call) allowed(what record.AccessTo, why string) (record.ID, error) {
	a := c.access(what, why)
	a.Allowed, a.Records = true, []string{what.Exchange}
	return c.record(a)
}

func (c *call) payload() error {
	var req PayloadRequest
	if err := c.body(&req); err != nil {
		return err
	}
	id, err := exchange(req.Exchange)
	if err != nil {
		return err
	}
	direction, ok := directions[req.Direction]
	if !ok {
		return badRequest(errors.New("direction: want request, upstream or response"))
	}
	what := record.AccessTo{Action: ActionPayload, Exchange: id.String(), Direction: req.Direction}
	if err := c.auditors(what, req.Why, "your role does not read payloads"); err != nil {
		return err
	}
	if err := c.reason(what, req.Why, true); err != nil {
		return err
	}
	damaged := false
	cfg, err := c.config(func(err error) {
		damaged = true
		c.s.log.Warn("access: the vault is damaged", "error", err)
	})
	if err != nil {
		return err
	}
	of, err := c.allowed(what, req.Why)
	if err != nil {
		return err
	}
	begun := false
	begin := func() {
		begun = true
		h := c.w.Header()
		h.Set(headerAccess, of.String())
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", "attachment")
		h.Set("Trailer", trailerEnd+", "+trailerNote)
	}
	d, err := search.Find(c.r.Context(), cfg, id, func(of record.Direction, b []byte) error {
		if of != direction {
			return nil
		}
		if !begun {
			begin()
		}
		c.deadline()
		if _, err := c.w.Write(b); err != nil {
			return errLeft
		}
		return nil
	})
	note := ""
	switch {
	case errors.Is(err, errLeft):
		return nil
	case err != nil:
		err = found(err)
	default:
		note, err = d.Body(direction)
		if err == nil && damaged && d.Result == search.Pending {
			err = fmt.Errorf("the vault is damaged where %s lies, so the %s may not be whole: run recorder verify", id, direction)
		}
		if err != nil {
			err = &Error{Status: http.StatusNotFound, Code: CodeNoBody, Message: err.Error()}
		}
	}
	if !begun {
		if err != nil {
			return err
		}
		begin() // an empty body
		c.w.WriteHeader(http.StatusOK)
	}
	end := endWhole
	var known *Error
	switch {
	case errors.As(err, &known):
		end = strconv.QuoteToASCII(known.Message)
	case err != nil:
		c.s.log.Error("access: failed", "action", c.action, "error", err)
		end = strconv.QuoteToASCII("the vault could not be read to the end: the service's log says why")
	}
	c.w.Header().Set(trailerEnd, end)
	if note != "" {
		c.w.Header().Set(trailerNote, strconv.QuoteToASCII(note))
	}
	c.deadline()
	return nil
}
