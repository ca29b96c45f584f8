package bigquery

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"verbatim.dev/recorder/record"
)

// MaxTarget is the longest :path that is taken, in bytes.
const MaxTarget = 16 << 10

// Request is what Classify looks at.
type Request struct {
	Method  string // :method
	Target  string // :path as on the wire, with its query
	Headers []record.Header
}

// Upload says which step of an upload a call is.
type Upload string

// The steps of uploads.
const (
	UploadNone      Upload = ""
	UploadMultipart Upload = "multipart" // job and media in one body
	UploadStart     Upload = "start"     // of a resumable upload: the job, no media
	UploadChunk     Upload = "chunk"     // a piece of media, or a question for the state
)

// Call is what a request means.
type Call struct {
	Method  string // the route's ID, "bigquery.jobs.query"; empty where no route matches
	HTTP    string // :method
	Kind    Kind
	Carries Carries
	Stance  Stance
	// Path is the canonical :path for upstream: full prefix, each segment and
	// parameter encoded once and in one way, none but known parameters.
	Path     string
	Template string     // of the route
	Query    url.Values // the parameters in Path, decoded

	Project, Dataset, Table string
	// Decorator is what stood behind the table's name: "$20240101" or
	// "@-3600000".
	Decorator             string
	Routine, Model, Grant string      // Grant is the id of a row access policy
	Job                   *record.Job // from the path and the location parameter; of jobs.list, its parentJobId
	Upload                Upload
	UploadID              string // of a chunk
	UploadProof           string // of a chunk: what the gateway put into its address
	Exchange              string // the receipt or id in the path of MethodExchange
}

// Record returns the call as the record keeps it.
func (c *Call) Record() record.Call {
	return record.Call{Method: c.Method, Project: c.Project, Dataset: c.Dataset, Table: c.Table, Job: c.Job}
}

// segment of a compiled template: either a literal or a variable, and behind a
// variable or a literal maybe a verb (":undelete").
type segment struct {
	literal  string
	variable string
	verb     string
}

type compiled struct {
	*Route
	segments []segment
	rest     bool // the last segment was {rest...}
	params   map[string]bool
}

var compiledTable = compileTable(routeTable)

func compileTable(table []Route) []compiled {
	out := make([]compiled, len(table))
	for i := range table {
		r := &table[i]
		c := compiled{Route: r, params: map[string]bool{}}
		for _, s := range strings.Split(r.Path[1:], "/") {
			var seg segment
			if v, verb, ok := strings.Cut(s, "}:"); ok {
				seg = segment{variable: v[1:], verb: verb}
			} else if s == "{rest...}" {
				c.rest = true
				break
			} else if strings.HasPrefix(s, "{") {
				seg = segment{variable: s[1 : len(s)-1]}
			} else {
				seg = segment{literal: s}
			}
			c.segments = append(c.segments, seg)
		}
		for _, p := range commonParams {
			c.params[p] = true
		}
		for _, p := range r.Params {
			c.params[p] = true
		}
		out[i] = c
	}
	return out
}

// Classify says what a request means. Where it is refused, the Call holds what
// is known of it all the same, for the record. A path has one meaning only:
// whatever a router between the gateway and BigQuery could read in another way
// is refused.
func Classify(r Request) (Call, *Refusal) {
	call := Call{HTTP: r.Method}
	if !slices.Contains([]string{"GET", "POST", "PUT", "PATCH", "DELETE"}, r.Method) {
		return call, denied("method_unknown", "This HTTP method is not part of the BigQuery API; use GET, POST, PUT, PATCH or DELETE.")
	}
	grpc := false
	for _, h := range r.Headers {
		if overridesMethod(h.Name) {
			return call, denied("method_override", "A header that overrides the HTTP method is refused; send the request with the method itself.")
		}
		if strings.EqualFold(h.Name, "content-type") && strings.HasPrefix(strings.ToLower(strings.TrimSpace(h.Value)), "application/grpc") {
			grpc = true
		}
	}
	rawPath, rawQuery, hasQuery := strings.Cut(r.Target, "?")
	if ref := checkTarget(r.Target, rawPath); ref != nil {
		return call, ref
	}
	path, ref := splitPath(rawPath)
	if ref != nil {
		return call, ref
	}
	if path[0] == "projects" { // Go's and Node's form with no prefix
		path = append([]string{"bigquery", "v2"}, path...)
	}
	route, vars, ref := match(r.Method, path)
	if ref != nil {
		if grpc && ref.Code == "route_unknown" {
			ref = denied("route_unknown", "This gRPC method is not served by the gateway; use the REST form of BigQuery v2.")
		}
		return call, ref
	}
	call.Method, call.Kind, call.Carries, call.Stance, call.Template = route.ID, route.Kind, route.Carries, route.Stance, route.Path
	if ref := call.take(vars); ref != nil {
		return call, ref
	}
	if route.rest || (route.Stance == Deny && route.HTTP == "*") {
		return call, stance(route.Route) // its query means nothing to us
	}
	if route.Carries == CarriesGRPC {
		if hasQuery {
			return call, invalid("query_form", "A gRPC call has no query string.")
		}
		call.Path = emit(route, vars, nil)
		if ref := checkGRPC(r); ref != nil {
			return call, ref
		}
		return call, nil
	}
	if ref := call.query(route, rawQuery, hasQuery); ref != nil {
		return call, ref
	}
	call.UploadProof = call.Query.Get(UploadProofParam)
	call.Query.Del(UploadProofParam)
	if ref := call.upload(); ref != nil {
		return call, ref
	}
	call.Path = emit(route, vars, call.Query)
	if call.Job != nil {
		call.Job.Location = call.Query.Get("location")
	}
	if parent := call.Query.Get("parentJobId"); call.Method == "bigquery.jobs.list" && parent != "" {
		if !validID(parent) {
			return call, invalid("name_job", "parentJobId holds a character other than a letter, digit or one of -._~.")
		}
		call.Job = &record.Job{Project: call.Project, ID: parent}
	}
	if route.Stance == Deny {
		return call, stance(route.Route)
	}
	if grpc {
		return call, denied("content_type", "A gRPC body on a REST path is refused.")
	}
	return call, nil
}

func stance(r *Route) *Refusal {
	ref := denied("route_denied", fmt.Sprintf("%s is not open through this gateway: it %s.", r.ID, r.Reason))
	if r.HTTP == "*" {
		ref.Message = fmt.Sprintf("%s is not open through this gateway: %s.", r.ID, r.Reason)
	}
	ref.Stance = true
	return ref
}

// overridesMethod recognises X-HTTP-Method-Override and its relatives however
// they are spelled: Envoy passes underscores and any case.
func overridesMethod(name string) bool {
	if len(name) < 7 || len(name) > 64 {
		return false
	}
	folded := strings.Map(func(c rune) rune {
		switch {
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		case c >= 'a' && c <= 'z':
			return c
		}
		return -1
	}, name)
	switch folded {
	case "xhttpmethodoverride", "xhttpmethod", "xmethodoverride", "httpmethodoverride", "xgooghttpmethodoverride":
		return true
	}
	return false
}

// checkTarget refuses bytes that some router reads in another way.
func checkTarget(target, rawPath string) *Refusal {
	if len(target) > MaxTarget {
		return &Refusal{Status: http.StatusRequestURITooLong, Reason: ReasonInvalid, Code: "path_long", Message: fmt.Sprintf("The path and query are longer than %d bytes.", MaxTarget)}
	}
	for i := 0; i < len(target); i++ {
		switch c := target[i]; {
		case c <= ' ' || c >= 0x7f:
			return invalid("path_bytes", "The path holds a space, a control character or a byte outside ASCII; percent-encode it.")
		case c == '#', c == ';', c == '\\':
			return invalid("path_bytes", fmt.Sprintf("The path holds %q, which is refused; percent-encode it within a value.", c))
		case c == '"' || c == '<' || c == '>' || c == '^' || c == '`' || c == '{' || c == '}' || c == '|':
			if i < len(rawPath) {
				return invalid("path_bytes", fmt.Sprintf("The path holds %q, which a URL cannot hold unencoded.", c))
			}
		}
	}
	if !strings.HasPrefix(rawPath, "/") {
		return invalid("path_form", "The request target must be a path that begins with a slash.")
	}
	return nil
}

// splitPath decodes a path once and returns its segments. What is encoded with
// no need (letters, digits, -._~) or decodes to structure (slash, percent) is
// refused: there another router could see another path.
func splitPath(raw string) ([]string, *Refusal) {
	if raw == "/" {
		return nil, denied("route_unknown", "There is nothing at this path; BigQuery's API begins at /bigquery/v2/.")
	}
	parts := strings.Split(raw[1:], "/")
	for i, p := range parts {
		d, ref := decodeOnce(p)
		if ref != nil {
			return nil, ref
		}
		switch d {
		case "":
			return nil, invalid("path_form", "The path holds an empty segment (a double or trailing slash).")
		case ".", "..":
			return nil, invalid("path_form", "The path holds a dot segment.")
		}
		parts[i] = d
	}
	return parts, nil
}

func decodeOnce(s string) (string, *Refusal) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
			return "", invalid("path_encoding", "The path holds a percent sign that is no encoding.")
		}
		c := unhex(s[i+1])<<4 | unhex(s[i+2])
		switch {
		case unreserved(c):
			return "", invalid("path_encoding", "The path encodes a letter, digit or one of -._~, which needs no encoding.")
		case c != '$' && c != ':' && c != '@':
			return "", invalid("path_encoding", "The path encodes a character that no BigQuery name in a path can hold.")
		}
		b.WriteByte(c)
		i += 2
	}
	return b.String(), nil
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	default:
		return c - 'A' + 10
	}
}

// unreserved as RFC 3986, section 2.3.
func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// match finds the route of a decoded path. A path that is known with another
// HTTP method is told apart from one that is not known.
func match(method string, path []string) (*compiled, map[string]string, *Refusal) {
	var other []string
	for i := range compiledTable {
		c := &compiledTable[i]
		if len(path) < len(c.segments) || len(path) > len(c.segments) && !c.rest || c.rest && len(path) == len(c.segments) {
			continue
		}
		vars := map[string]string(nil)
		ok := true
		for j, s := range c.segments {
			if s.variable == "" {
				if path[j] != s.literal {
					ok = false
					break
				}
				continue
			}
			value := path[j]
			if s.variable != "project" {
				v, verb, has := strings.Cut(value, ":")
				if has != (s.verb != "") || verb != s.verb {
					ok = false
					break
				}
				value = v
			}
			if vars == nil {
				vars = map[string]string{}
			}
			vars[s.variable] = value
		}
		if !ok {
			continue
		}
		if c.HTTP == method || c.HTTP == "*" {
			return c, vars, nil
		}
		other = append(other, c.HTTP)
	}
	if len(other) > 0 {
		slices.Sort(other)
		return nil, nil, denied("method_unknown", fmt.Sprintf("BigQuery has no %s at this path; it knows %s.", method, strings.Join(slices.Compact(other), ", ")))
	}
	return nil, nil, denied("route_unknown", "This path is not part of the BigQuery v2 API that the gateway knows; names of routes are case-sensitive and have no trailing slash.")
}

// take checks the names in the path and keeps them.
func (c *Call) take(vars map[string]string) *Refusal {
	for name, v := range vars {
		switch name {
		case "project":
			if !validProject(v) {
				return invalid("name_project", "The project in the path is no project ID (lower-case letters, digits, hyphens).")
			}
			c.Project = v
		case "dataset":
			if !validID(v) {
				return invalid("name_dataset", "The dataset in the path holds a character other than a letter, digit or one of -._~.")
			}
			c.Dataset = v
		case "table":
			base := v
			if i := strings.IndexAny(v, "$@"); i >= 0 {
				base, c.Decorator = v[:i], v[i:]
			}
			if !validID(base) || !validDecorator(c.Decorator) {
				return invalid("name_table", "The table in the path holds a character other than a letter, digit or one of -._~, or a decorator that is none.")
			}
			c.Table = base
		case "job":
			if !validID(v) {
				return invalid("name_job", "The job in the path holds a character other than a letter, digit or one of -._~.")
			}
			c.Job = &record.Job{ID: v}
		case "exchange":
			if !validID(v) {
				return invalid("name_exchange", "The path holds no receipt: it is the value of the header x-verbatim-receipt, or its first two parts.")
			}
			c.Exchange = v
		case "routine", "model", "policy":
			if !validID(v) {
				return invalid("name_"+name, "The "+name+" in the path holds a character other than a letter, digit or one of -._~.")
			}
			switch name {
			case "routine":
				c.Routine = v
			case "model":
				c.Model = v
			default:
				c.Grant = v
			}
		}
	}
	if c.Job != nil {
		c.Job.Project = c.Project
	}
	return nil
}

// validProject takes project IDs and the older form with a domain
// ("example.com:project").
func validProject(s string) bool {
	if domain, rest, ok := strings.Cut(s, ":"); ok {
		return strings.Contains(domain, ".") && validProject(domain) && !strings.Contains(rest, ":") && validProject(rest)
	}
	if s == "" || len(s) > 256 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !unreserved(c) || c >= 'A' && c <= 'Z' || c == '~' {
			return false
		}
	}
	return s != "." && s != ".."
}

func validID(s string) bool {
	if s == "" || len(s) > 1024 || s == "." || s == ".." {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !unreserved(s[i]) {
			return false
		}
	}
	return true
}

// validDecorator takes "$" with a partition ("$20240101", "$__UNPARTITIONED__")
// and "@" with times ("@-3600000", "@1-2").
func validDecorator(s string) bool {
	if s == "" {
		return true
	}
	if len(s) < 2 || len(s) > 64 {
		return false
	}
	for i := 1; i < len(s); i++ {
		if !unreserved(s[i]) {
			return false
		}
	}
	return true
}

// query takes the parameters that the route knows.
func (c *Call) query(route *compiled, raw string, has bool) *Refusal {
	c.Query = url.Values{}
	if !has || raw == "" {
		return nil
	}
	seen := map[string]bool{}
	for _, pair := range strings.Split(raw, "&") {
		rawName, rawValue, ok := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(rawName)
		if !ok || err != nil || name == "" || overEncoded(rawName) {
			return invalid("query_form", "The query is not a list of name=value pairs, each encoded once.")
		}
		if folded := strings.Map(foldParam, name); folded == "accesstoken" || folded == "oauthtoken" || folded == "key" || folded == "bearertoken" {
			return denied("query_credential", "A credential in the query is refused; send the token in the Authorization header only.")
		}
		switch name {
		case "callback", "jsonp":
			return denied("query_callback", "A callback parameter is refused; answers are plain JSON.")
		case "upload_protocol":
			return denied("upload_type", "upload_protocol is refused; use uploadType=multipart or uploadType=resumable.")
		}
		if droppedParams[name] {
			continue
		}
		if !route.params[name] {
			if shown := showParam(name); shown != "" {
				return invalid("query_unknown", fmt.Sprintf("The query parameter %s is not known for %s; leave it out.", shown, route.ID))
			}
			return invalid("query_unknown", fmt.Sprintf("A query parameter is not known for %s; leave it out.", route.ID))
		}
		if seen[name] && name != "stateFilter" { // the one that BigQuery documents as repeated
			return invalid("query_twice", fmt.Sprintf("The query parameter %s is given twice.", name))
		}
		seen[name] = true
		value, err := url.QueryUnescape(rawValue)
		if err != nil || !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return invalid("query_form", fmt.Sprintf("The value of %s is not UTF-8 text, encoded once.", name))
		}
		switch name {
		case "alt":
			if value != "json" {
				return denied("query_alt", "Only alt=json is served: other forms of an answer cannot be recorded and masked.")
			}
		case "$.xgafv":
			if value != "1" && value != "2" {
				return invalid("query_value", "$.xgafv must be 1 or 2.")
			}
		case "prettyPrint":
			if !slices.Contains([]string{"true", "false", "True", "False"}, value) {
				return invalid("query_value", "prettyPrint must be true or false.")
			}
		case "version":
			if value != "v2" {
				return denied("query_value", "Only version v2 of the discovery document is served.")
			}
		}
		c.Query.Add(name, value)
	}
	return nil
}

func foldParam(r rune) rune {
	switch {
	case r >= 'A' && r <= 'Z':
		return r + 'a' - 'A'
	case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
		return r
	}
	return -1
}

// overEncoded reports an encoded letter or digit, as tricks need them.
func overEncoded(s string) bool {
	for i := 0; i+2 < len(s); i++ {
		if s[i] == '%' && isHex(s[i+1]) && isHex(s[i+2]) && unreserved(unhex(s[i+1])<<4|unhex(s[i+2])) {
			return true
		}
	}
	return false
}

// showParam returns a parameter's name where it may be shown: a token pasted
// as a name must not come back in an error.
func showParam(name string) string {
	if len(name) > 32 {
		return ""
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c != '.' && c != '_' && c != '$' && c != '-' && !(c|0x20 >= 'a' && c|0x20 <= 'z') {
			return ""
		}
	}
	return name
}

// upload tells the steps of an upload apart.
func (c *Call) upload() *Refusal {
	if !strings.Contains(c.Template, "/upload/") {
		return nil
	}
	kind, id := c.Query.Get("uploadType"), c.Query.Get("upload_id")
	_, hasID := c.Query["upload_id"]
	if hasID && (!validID(id)) {
		return invalid("upload_id", "The upload_id is not one that BigQuery gave out.")
	}
	switch {
	case kind == "multipart" && c.HTTP == "POST" && !hasID:
		c.Upload, c.Carries = UploadMultipart, CarriesMultipart
	case kind == "resumable" && hasID:
		c.Upload, c.Carries, c.UploadID = UploadChunk, CarriesStream, id
	case kind == "resumable" && c.HTTP == "POST":
		c.Upload, c.Carries = UploadStart, CarriesJSON
	case kind == "resumable":
		return invalid("upload_id", "A chunk of a resumable upload needs the upload_id of its start.")
	default:
		return denied("upload_type", "An upload must say uploadType=multipart or uploadType=resumable: other forms carry no job to decide about.")
	}
	return nil
}

// emit writes the canonical target.
func emit(route *compiled, vars map[string]string, query url.Values) string {
	var b strings.Builder
	for _, s := range route.segments {
		b.WriteByte('/')
		if s.variable == "" {
			b.WriteString(s.literal)
			continue
		}
		b.WriteString(vars[s.variable]) // checked: unreserved, '$', '@' and ':' only
		if s.verb != "" {
			b.WriteByte(':')
			b.WriteString(s.verb)
		}
	}
	if len(query) > 0 {
		b.WriteByte('?')
		b.WriteString(query.Encode()) // sorted by name
	}
	return b.String()
}
