package sql

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sqlc-dev/zetajones/ast"
	"github.com/sqlc-dev/zetajones/parser"
	"github.com/sqlc-dev/zetajones/token"
)

// BodyKind says what a text is that is stored rather than run.
type BodyKind int

const (
	bodyScript BodyKind = iota // what a query job runs
	// BodyView is a view's query (tables.insert: view.query, materializedView.query).
	BodyView
	// BodyFunction is a SQL function's expression (routines.insert: definitionBody of SCALAR_FUNCTION and
	// AGGREGATE_FUNCTION), and a row access policy's filter.
	BodyFunction
	// BodyTableFunction is a table function's query (TABLE_VALUED_FUNCTION).
	BodyTableFunction
	// BodyProcedure is a procedure's script (PROCEDURE in SQL).
	BodyProcedure
)

// Body is a stored text. JavaScript, Python and Spark bodies are none: nobody here reads them.
type Body struct {
	Kind BodyKind
	// Arguments of the routine; those that are tables are in TableArguments.
	Arguments, TableArguments []string
}

// Config bounds an Analyzer. Zero values mean the defaults.
type Config struct {
	// Limit is the largest text in bytes; DefaultLimit by default, MaxLimit at most.
	Limit int
	// Timeout is how long reading one text may take, 2 seconds by default. The guard keeps every text below about a
	// second on a slow core, so it is for a machine that is busy.
	Timeout time.Duration
	// CacheEntries is how many texts' facts are kept, 4096 by default; none when negative.
	CacheEntries int
	// CacheBytes bounds the kept texts' bytes together, 32 MiB by default; facts take a few times as much.
	CacheBytes int
	// Parallel is how many texts are read at once, twice the processors by default.
	Parallel int
}

// Analyzer finds facts, and keeps them by the SHA-256 of text and options. It is
// safe for concurrent use. Each text is read in a goroutine of its own that ends with
// the reading: after a time limit too, as the guard bounds every reading; Parallel bounds their number.
type Analyzer struct {
	cfg   Config
	slots chan struct{}

	mu    sync.Mutex
	kept  map[[sha256.Size]byte]*list.Element // guarded by mu
	order *list.List                          // of *entry, the latest first; guarded by mu
	bytes int                                 // guarded by mu
}

type entry struct {
	key   [sha256.Size]byte
	facts *Facts
	size  int
}

// New returns an Analyzer.
func New(c Config) *Analyzer {
	if c.Limit <= 0 {
		c.Limit = DefaultLimit
	}
	c.Limit = min(c.Limit, MaxLimit)
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Second
	}
	if c.CacheEntries == 0 {
		c.CacheEntries = 4096
	}
	if c.CacheBytes <= 0 {
		c.CacheBytes = 32 << 20
	}
	if c.Parallel <= 0 {
		c.Parallel = 2 * runtime.GOMAXPROCS(0)
	}
	return &Analyzer{cfg: c, slots: make(chan struct{}, c.Parallel), kept: map[[sha256.Size]byte]*list.Element{}, order: list.New()}
}

var standard = sync.OnceValue(func() *Analyzer { return New(Config{CacheEntries: -1}) })

// Analyze returns the facts of a query job's text by an Analyzer of the default
// limits without a cache. It never fails otherwise than by Facts.Problem.
func Analyze(ctx context.Context, text string, o Options) *Facts {
	return standard().Analyze(ctx, text, o)
}

// AnalyzeBody is [Analyze] for a text that is stored as a view or routine.
func AnalyzeBody(ctx context.Context, b Body, text string, o Options) *Facts {
	return standard().AnalyzeBody(ctx, b, text, o)
}

// AnalyzeView is [AnalyzeBody] for a view's query.
func AnalyzeView(ctx context.Context, text string, o Options) *Facts {
	return AnalyzeBody(ctx, Body{Kind: BodyView}, text, o)
}

// Analyze returns the facts of a query job's text. The caller must not change
// what the facts' slices hold.
func (a *Analyzer) Analyze(ctx context.Context, text string, o Options) *Facts {
	return a.AnalyzeBody(ctx, Body{}, text, o)
}

// AnalyzeBody is Analyze for a text that is stored as a view or routine: what it
// reads and writes has As "definition", and its statements are marked so.
func (a *Analyzer) AnalyzeBody(ctx context.Context, b Body, text string, o Options) *Facts {
	if len(text) > a.cfg.Limit {
		return &Facts{Source: SourceParser, Problem: checkBytes(text, a.cfg.Limit)}
	}
	key := cacheKey(b, text, o)
	if f := a.cached(key); f != nil {
		return f
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	late := func() *Facts {
		return &Facts{Source: SourceParser, Problem: &Problem{Code: "timeout", Message: "reading the text took too long", Line: 1, Column: 1}}
	}
	select {
	case a.slots <- struct{}{}:
	case <-ctx.Done():
		return late()
	}
	done := make(chan *Facts, 1)
	go func() {
		defer func() { <-a.slots }()
		done <- find(ctx, b, text, o, a.cfg.Limit)
	}()
	select {
	case f := <-done:
		a.keep(key, f, len(text))
		return f.share()
	case <-ctx.Done():
		return late()
	}
}

// share returns a copy whose slices grow apart from f's.
func (f *Facts) share() *Facts {
	c := *f
	c.Statements, c.Reads, c.Writes = slices.Clip(f.Statements), slices.Clip(f.Reads), slices.Clip(f.Writes)
	c.Functions, c.Externals, c.Opaque, c.Temporary = slices.Clip(f.Functions), slices.Clip(f.Externals), slices.Clip(f.Opaque), slices.Clip(f.Temporary)
	return &c
}

// keyBuffers hold what a key is the digest of.
var keyBuffers = sync.Pool{New: func() any { return new([]byte) }}

func cacheKey(b Body, text string, o Options) [sha256.Size]byte {
	pooled := keyBuffers.Get().(*[]byte)
	buf := append((*pooled)[:0], byte(b.Kind))
	put := func(s string) { // with its length, so that no two lists of texts are the same bytes
		buf = append(binary.BigEndian.AppendUint64(buf, uint64(len(s))), s...)
	}
	for _, s := range []string{text, o.Project, o.DatasetProject, o.Dataset} {
		put(s)
	}
	for _, l := range [][]string{o.Temporary, b.Arguments, b.TableArguments} {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(l)))
		for _, s := range l {
			put(s)
		}
	}
	key := sha256.Sum256(buf)
	*pooled = buf
	keyBuffers.Put(pooled)
	return key
}

func (a *Analyzer) cached(key [sha256.Size]byte) *Facts {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.kept[key]
	if !ok {
		return nil
	}
	a.order.MoveToFront(e)
	return e.Value.(*entry).facts.share()
}

func (a *Analyzer) keep(key [sha256.Size]byte, f *Facts, size int) {
	size += 512
	if a.cfg.CacheEntries < 0 || size > a.cfg.CacheBytes || f.Problem != nil && f.Problem.Code == "timeout" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.kept[key]; ok {
		return
	}
	a.kept[key] = a.order.PushFront(&entry{key, f, size})
	a.bytes += size
	for a.order.Len() > a.cfg.CacheEntries || a.bytes > a.cfg.CacheBytes {
		e := a.order.Remove(a.order.Back()).(*entry)
		delete(a.kept, e.key)
		a.bytes -= e.size
	}
}

// find reads one text.
func find(ctx context.Context, b Body, text string, o Options, limit int) (f *Facts) {
	deadline, bounded := ctx.Deadline()
	w := newWalker(text, func() error {
		if bounded && time.Now().After(deadline) {
			return context.DeadlineExceeded
		}
		return ctx.Err()
	})
	defer func() {
		if r := recover(); r != nil {
			// A defect of the parser or of this package: its text could quote the caller's.
			f = &Facts{Source: SourceParser, Problem: &Problem{Code: "parser_failed", Message: "the text made its reader fail", Line: 1, Column: 1}}
		}
	}()
	if p := w.defaults(o); p != nil {
		return &Facts{Source: SourceParser, Problem: p}
	}
	if b.Kind != bodyScript {
		w.defines = 1
		for _, v := range b.Arguments {
			w.vars[strings.ToLower(v)] = true
		}
		for _, v := range b.TableArguments {
			w.arguments = &cte{name: strings.ToLower(v), next: w.arguments}
		}
	}
	p := w.run(limit, b.Kind)
	w.finish()
	w.facts.Problem = p
	return w.facts
}

// defaults takes over the job's defaults.
func (w *walker) defaults(o Options) *Problem {
	refused := func(err error) *Problem {
		p := &Problem{Code: "invalid_name", Message: "the job's default project or dataset: " + err.Error(), Line: 1, Column: 1}
		var e *NameError
		if errors.As(err, &e) {
			p.Code = e.Code
		}
		return p
	}
	w.env = &env{tables: map[string]bool{}, routines: map[string]bool{}}
	if o.Project != "" {
		p, err := canonicalProject(o.Project)
		if err != nil {
			return refused(err)
		}
		w.env.project = p
	}
	if o.Dataset != "" {
		if err := checkDataset(o.Dataset); err != nil {
			return refused(err)
		}
		w.env.dataset, w.env.datasetProject = o.Dataset, w.env.project
		if o.DatasetProject != "" {
			p, err := canonicalProject(o.DatasetProject)
			if err != nil {
				return refused(err)
			}
			w.env.datasetProject = p
		}
	}
	for _, t := range o.Temporary {
		w.env.tables[t], w.env.routines[t] = true, true
	}
	return nil
}

// features are those of the parser that BigQuery has too.
var features = parser.Options{
	Features:                    parser.ParseFeatureSet("MAXIMUM,+SQL_GRAPH,-ALLOW_SLASH_PATHS,-BRACED_PROTO_CONSTRUCTORS,-TTL,-FOR_UPDATE"),
	SupportedGenericEntityTypes: entityTypes,
	ReserveGraphTable:           true,
}

// run guards, parses and walks the text.
func (w *walker) run(limit int, kind BodyKind) (p *Problem) {
	w.r = &rewritten{text: w.text}
	if p := checkBytes(w.text, limit); p != nil {
		return p
	}
	if legacyPrefix(w.text) {
		return &Problem{Code: "legacy", Message: "a line begins with #legacySQL, which chooses another dialect: leave it out and write GoogleSQL", Line: 1, Column: 1}
	}
	toks, p := lex(w.text)
	if p != nil {
		return p
	}
	if p := guardTokens(w.text, toks); p != nil {
		return p
	}
	if len(toks) <= 1 {
		return &Problem{Code: "empty", Message: "the text holds no statement", Line: 1, Column: 1}
	}
	if kind == BodyFunction {
		return w.runExpression()
	}
	w.foresee(toks)
	if r := rewrite(w.text, toks); len(r.edits) > 0 {
		toks, p := lex(r.text)
		if p == nil {
			p = guardTokens(r.text, toks)
		}
		if p == nil { // what the rewriting broke is read as it stands
			w.r = r
		}
	}
	if w.check() != nil {
		return &Problem{Code: "timeout", Message: "reading the text took too long", Line: 1, Column: 1}
	}
	script, err := parser.ParseScriptWithOptions(w.r.text, features)
	if err != nil {
		return w.syntax(err)
	}
	if len(script.Statements.Statements) == 0 {
		return &Problem{Code: "empty", Message: "the text holds no statement", Line: 1, Column: 1}
	}
	return w.guarded(func() {
		switch kind {
		case BodyView, BodyTableFunction:
			q, ok := script.Statements.Statements[0].(*ast.QueryStatement)
			if !ok || len(script.Statements.Statements) != 1 {
				w.fail(script.Pos(), "unsupported", "a view or table function is one query and nothing else")
			}
			end := w.begin("SELECT", q.Pos())
			w.query(q.Query, nil, w.arguments)
			end()
		default:
			w.list(script.Statements.Statements)
		}
		w.settle(script)
	})
}

// settle compares what was walked with what the tree holds.
func (w *walker) settle(n ast.Node) {
	var a account
	a.count(w, n)
	if a != w.seen {
		w.unsupported(n, "a query, table or call in some place of this text")
	}
}

// guarded runs a walk and returns the Problem that stopped it.
func (w *walker) guarded(walk func()) (p *Problem) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case stop:
			p = r.p
		default:
			panic(r)
		}
	}()
	walk()
	return nil
}

// runExpression reads a text that is an expression.
func (w *walker) runExpression() *Problem {
	e, err := parser.ParseExpressionWithOptions(w.text, features)
	if err != nil {
		return w.syntax(err)
	}
	return w.guarded(func() {
		end := w.begin("EXPRESSION", e.Pos())
		w.expr(e, &scope{ctes: w.arguments})
		end()
		w.settle(e)
	})
}

// syntax says where the parser stopped. Its own texts quote the caller's.
func (w *walker) syntax(err error) *Problem {
	at := 0
	var pe *parser.Error
	if errors.As(err, &pe) {
		at = w.r.original(pe.Offset)
	}
	p := problemAt(w.text, at, "syntax", "the text is not understood from here on")
	p.Fallback = true
	return p
}

// foresee finds what can happen before its place in the text, as loops run
// backwards.
func (w *walker) foresee(toks []token.Token) {
	lower := strings.ToLower(w.text)
	w.rebound = w.rebound || strings.Contains(lower, "dataset_id") || strings.Contains(lower, "dataset_project_id")
	for i, t := range toks {
		switch {
		case isWord(t, "CALL"), isWord(t, "IMMEDIATE"):
			w.unsure = true
		case isAny(t, "DROP", "RENAME"):
			// Every name up to the statement's end.
			for j := i + 1; j < len(toks) && toks[j].Kind != token.SEMICOLON; j++ {
				if k := toks[j].Kind; k == token.IDENT || k == token.QUOTED_IDENT {
					name := strings.ToLower(strings.Trim(toks[j].Image, "`"))
					w.dropped[name[strings.LastIndexByte(name, '.')+1:]] = true
				}
			}
			if i > 0 && isWord(t, "RENAME") {
				for j := i - 1; j >= 0 && toks[j].Kind != token.SEMICOLON; j-- {
					if k := toks[j].Kind; k == token.IDENT || k == token.QUOTED_IDENT {
						name := strings.ToLower(strings.Trim(toks[j].Image, "`"))
						w.dropped[name[strings.LastIndexByte(name, '.')+1:]] = true
					}
				}
			}
		}
	}
}
