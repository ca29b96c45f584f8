package envoy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	rawv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// Finding is one breach of the contract.
type Finding struct {
	// Path is where it is, like $.static_resources.listeners[0]; Line is its
	// 1-based line, 0 where unknown. Inside a part that a YAML alias stands for,
	// the line is the alias's.
	Path string
	Line int
	// Rule is a stable name; Message says what is wrong, and why it matters or
	// what to do.
	Rule, Message string
}

// String is the finding in the form of a compiler's messages, without the
// file's name.
func (f Finding) String() string {
	return fmt.Sprintf("%d: %s: %s (%s)", f.Line, f.Rule, f.Message, f.Path)
}

// Lint checks a bootstrap (YAML or JSON) against the invariants that the
// gateway rests on, and returns what breaks them in the order of the file's
// parts; none means that it holds. It reads the file as Envoy does, into
// Envoy's own messages. What it does not know it refuses: an extension or a
// field that has no place in the contract may be a way round the processor.
func Lint(text []byte) []Finding {
	l := &linter{}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return []Finding{{Path: "$", Line: errorLine(err), Rule: "parse", Message: "not YAML: " + firstLine(yaml.FormatError(err, false, false))}}
	}
	l.file = file
	b, err := decode(text)
	if err != nil {
		return []Finding{{Path: "$", Line: mentionedLine(text, err), Rule: "parse", Message: "not a bootstrap that this lint knows: " + err.Error() + "; an extension that is unknown here may lead round the processor"}}
	}
	l.bootstrap(b)
	return l.findings
}

// decode turns YAML into the bootstrap message.
func decode(text []byte) (*bootstrapv3.Bootstrap, error) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, errors.New(firstLine(yaml.FormatError(err, false, false)))
	}
	var more any
	if err := d.Decode(&more); err == nil {
		return nil, errors.New("more than one YAML document")
	}
	j, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(j, b); err != nil {
		// The library varies its spaces on purpose.
		return nil, errors.New(strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: "))
	}
	return b, nil
}

type linter struct {
	file     *ast.File
	findings []Finding

	clusters   map[string]*clusterv3.Cluster
	processors map[string]bool
}

func (l *linter) add(path, rule, format string, a ...any) {
	l.findings = append(l.findings, Finding{Path: path, Line: l.line(path), Rule: rule, Message: fmt.Sprintf(format, a...)})
}

// line finds the line of a path, or of the nearest part above it that the file
// spells out.
func (l *linter) line(path string) int {
	for path != "$" && path != "" {
		if p, err := yaml.PathString(path); err == nil {
			if n, err := p.FilterFile(l.file); err == nil && n != nil && n.GetToken() != nil && n.GetToken().Position != nil {
				return n.GetToken().Position.Line
			}
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			break
		}
		path = path[:cut]
	}
	return 1
}

// fieldsOf are the fields that a message of the contract may have. A message
// that is not listed may have any.
var fieldsOf = map[protoreflect.FullName][]protoreflect.Name{
	"envoy.config.bootstrap.v3.Bootstrap": {"node", "node_context_params", "static_resources", "admin", "overload_manager", "layered_runtime", "cluster_manager",
		"stats_config", "stats_sinks", "stats_flush_interval", "watchdogs", "application_log_config", "memory_allocator_manager", "typed_dns_resolver_config", "enable_dispatcher_stats"},
	"envoy.config.bootstrap.v3.Bootstrap.StaticResources": {"listeners", "clusters", "secrets"},
	"envoy.config.listener.v3.Listener": {"name", "address", "additional_addresses", "stat_prefix", "filter_chains", "default_filter_chain", "per_connection_buffer_limit_bytes",
		"metadata", "drain_type", "listener_filters", "listener_filters_timeout", "traffic_direction", "connection_balance_config", "enable_reuse_port", "access_log",
		"tcp_backlog_size", "tcp_fast_open_queue_length", "socket_options", "max_connections_to_accept_per_socket_event", "tcp_keepalive"},
	"envoy.config.listener.v3.FilterChain": {"filter_chain_match", "filters", "metadata", "transport_socket", "transport_socket_connect_timeout", "name"},
	"envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager": {"codec_type", "stat_prefix", "route_config", "http_filters", "common_http_protocol_options",
		"http_protocol_options", "http2_protocol_options", "server_name", "server_header_transformation", "max_request_headers_kb", "stream_idle_timeout", "stream_flush_timeout",
		"request_headers_timeout", "drain_timeout", "delayed_close_timeout", "access_log", "access_log_flush_interval", "access_log_options", "use_remote_address", "xff_num_trusted_hops",
		"early_header_mutation_extensions", "internal_address_config", "skip_xff_append", "via", "generate_request_id", "preserve_external_request_id", "always_set_request_id_in_response",
		"forward_client_cert_details", "set_current_client_cert_details", "normalize_path", "merge_slashes", "path_with_escaped_slashes_action", "local_reply_config", "strip_trailing_host_dot"},
	"envoy.config.route.v3.RouteConfiguration": {"name", "virtual_hosts", "validate_clusters", "metadata", "request_headers_to_remove", "response_headers_to_remove"},
	"envoy.config.route.v3.VirtualHost":        {"name", "domains", "routes", "metadata", "request_headers_to_remove", "response_headers_to_remove", "include_request_attempt_count"},
	"envoy.config.route.v3.Route":              {"name", "match", "route", "direct_response", "redirect", "metadata", "request_headers_to_remove", "response_headers_to_remove", "stat_prefix"},
	"envoy.config.route.v3.RouteAction":        {"cluster_header", "cluster_not_found_response_code", "auto_host_rewrite", "timeout", "idle_timeout", "flush_timeout", "priority"},
	"envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor": {"grpc_service", "processing_mode", "request_attributes", "response_attributes", "message_timeout", "stat_prefix",
		"mutation_rules", "filter_metadata", "metadata_options", "route_cache_action", "status_on_error", "emit_client_span"},
	"envoy.extensions.filters.http.rbac.v3.RBAC": {"rules", "rules_stat_prefix", "track_per_rule_stats"},
	"envoy.extensions.filters.http.router.v3.Router": {"dynamic_stats", "suppress_envoy_headers", "strict_check_headers", "upstream_log", "upstream_log_options", "suppress_grpc_request_failure_code_stats",
		"reject_connect_request_early_data"},
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"common_http_protocol_options", "upstream_http_protocol_options", "explicit_http_config", "use_downstream_protocol_config", "auto_config"},
	"envoy.config.cluster.v3.Cluster": {"name", "alt_stat_name", "type", "connect_timeout", "per_connection_buffer_limit_bytes", "lb_policy", "load_assignment", "health_checks",
		"max_requests_per_connection", "circuit_breakers", "typed_extension_protocol_options", "dns_refresh_rate", "dns_jitter", "dns_failure_refresh_rate", "respect_dns_ttl", "dns_lookup_family",
		"typed_dns_resolver_config", "wait_for_warm_on_init", "outlier_detection", "upstream_bind_config", "common_lb_config", "transport_socket", "transport_socket_matches", "metadata",
		"upstream_connection_options", "close_connections_on_host_health_failure", "track_cluster_stats", "track_timeout_budgets", "load_balancing_policy"},
}

// ruleOfField names the rule that a field breaks by being there at all.
var ruleOfField = map[protoreflect.Name][2]string{
	"dynamic_resources":         {"static-only", "configuration from elsewhere can change what this lint has checked"},
	"hds_config":                {"static-only", "configuration from elsewhere can change what this lint has checked"},
	"fcds_config":               {"static-only", "configuration from elsewhere can change what this lint has checked"},
	"rds":                       {"static-only", "routes must stand in the bootstrap"},
	"scoped_routes":             {"static-only", "routes must stand in the bootstrap"},
	"vhds":                      {"static-only", "routes must stand in the bootstrap"},
	"eds_cluster_config":        {"static-only", "endpoints must stand in the bootstrap"},
	"lrs_server":                {"static-only", "configuration from elsewhere can change what this lint has checked"},
	"upgrade_configs":           {"no-upgrades", "an upgraded connection is no longer HTTP that the processor reads"},
	"retry_policy":              {"no-retries", "a repeated request may run a job twice: jobs.insert without a job id is not idempotent"},
	"retry_policy_typed_config": {"no-retries", "a repeated request may run a job twice: jobs.insert without a job id is not idempotent"},
	"hedge_policy":              {"no-retries", "a hedged request may run a job twice"},
	"internal_redirect_policy":  {"no-internal-redirect", "Envoy would follow a redirect past the processor's decision"},
	"internal_redirect_action":  {"no-internal-redirect", "Envoy would follow a redirect past the processor's decision"},
	"max_internal_redirects":    {"no-internal-redirect", "Envoy would follow a redirect past the processor's decision"},
	"request_mirror_policies":   {"no-mirror", "a mirrored request leaves without a record"},
	"typed_per_filter_config":   {"no-per-route-override", "a per-route configuration can switch ext_proc or RBAC off"},
	"allow_mode_override":       {"no-mode-override", "a reply could switch the processing of bodies off"},
	"allowed_override_modes":    {"no-mode-override", "a reply could switch the processing of bodies off"},
	"observability_mode":        {"no-observability-mode", "Envoy would not wait for the processor"},
	"failure_mode_allow":        {"fail-closed", "with failure_mode_allow a request passes when the processor fails"},
	"disable_immediate_response": {"immediate-response",
		"the processor's denials would be ignored"},
	"http_service":                {"grpc-processor", "the processor is reached by gRPC"},
	"forward_rules":               {"all-headers", "the processor must see every header"},
	"allow_content_length_header": {"content-length", "a wrong content-length is a way to smuggle requests"},
	"disable_clear_route_cache":   {"route-cache", "the route must be computed again after the processor has chosen the upstream: use route_cache_action DEFAULT"},
	"upstream_http_filters":       {"filters", "a filter behind the processor can change what was recorded"},
	"http_filters":                {"filters", "a filter behind the processor can change what was recorded"},
	"tracing":                     {"no-tracing", "spans carry whole URLs, in which credentials may stand, to another system"},
	"header_prefix":               {"envoy-headers", "the client's x-envoy-* headers are removed by that prefix"},
	"shadow_rules":                {"admission", "only rules decide"},
	"matcher":                     {"unexpected-field", "a matcher can choose another action than the one checked here"},
}

// known reports the fields of m that have no place in the contract.
func (l *linter) known(path string, m proto.Message) {
	r := m.ProtoReflect()
	allowed, listed := fieldsOf[r.Descriptor().FullName()]
	if !listed {
		return
	}
	var bad []protoreflect.Name
	r.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(allowed, f.Name()) {
			bad = append(bad, f.Name())
		}
		return true
	})
	slices.Sort(bad)
	for _, name := range bad {
		if rule, ok := ruleOfField[name]; ok {
			l.add(path+"."+string(name), rule[0], "remove %s: %s", name, rule[1])
		} else {
			l.add(path+"."+string(name), "unexpected-field", "%s has no place in the contract: it may lead round the processor", name)
		}
	}
}

func (l *linter) bootstrap(b *bootstrapv3.Bootstrap) {
	l.known("$", b)
	if s := b.GetStaticResources(); s != nil {
		l.known("$.static_resources", s)
	}
	l.admin(b.GetAdmin())
	for i, layer := range b.GetLayeredRuntime().GetLayers() {
		path := fmt.Sprintf("$.layered_runtime.layers[%d]", i)
		if layer.GetStaticLayer() == nil {
			l.add(path, "runtime", "only static layers: others can change Envoy's behaviour while it runs")
			continue
		}
		for key := range layer.GetStaticLayer().GetFields() {
			if strings.HasPrefix(key, "envoy.") || strings.HasPrefix(key, "re2.") {
				l.add(path, "runtime", "remove the key %s: it changes the behaviour that the contract was tested with", key)
			}
		}
	}
	l.clusters, l.processors = map[string]*clusterv3.Cluster{}, map[string]bool{}
	for _, c := range b.GetStaticResources().GetClusters() {
		l.clusters[c.GetName()] = c
	}
	gates := 0
	for i, listener := range b.GetStaticResources().GetListeners() {
		if l.listener(fmt.Sprintf("$.static_resources.listeners[%d]", i), listener) {
			gates++
		}
	}
	if gates == 0 {
		l.add("$.static_resources.listeners", "one-ext-proc", "no listener leads to the processor")
	}
	for i, c := range b.GetStaticResources().GetClusters() {
		l.cluster(fmt.Sprintf("$.static_resources.clusters[%d]", i), c)
	}
	l.anywhere("$", b.ProtoReflect(), false)
}

func (l *linter) admin(a *bootstrapv3.Admin) {
	if a == nil || a.GetAddress() == nil {
		return
	}
	const path = "$.admin.address"
	switch address := a.GetAddress().GetAddress().(type) {
	case *corev3.Address_Pipe:
	case *corev3.Address_SocketAddress:
		if ip, err := netip.ParseAddr(address.SocketAddress.GetAddress()); err != nil || !ip.Unmap().IsLoopback() {
			l.add(path, "admin-loopback", "admin listens on %s: whoever reaches it controls Envoy; use 127.0.0.1", address.SocketAddress.GetAddress())
		}
	default:
		l.add(path, "admin-loopback", "admin must listen on 127.0.0.1 or a UNIX socket")
	}
}

// listener checks a listener and reports whether it leads to the processor.
func (l *linter) listener(path string, li *listenerv3.Listener) bool {
	l.known(path, li)
	for i := range li.GetListenerFilters() {
		l.add(fmt.Sprintf("%s.listener_filters[%d]", path, i), "filters", "listener filters have no place in the contract")
	}
	for i, a := range li.GetAccessLog() {
		l.accessLog(fmt.Sprintf("%s.access_log[%d]", path, i), a.GetTypedConfig())
	}
	leads := false
	chain := func(path string, c *listenerv3.FilterChain) {
		l.known(path, c)
		if len(c.GetFilters()) != 1 {
			l.add(path+".filters", "bypass", "a filter chain holds one http_connection_manager and nothing else")
		}
		for i, f := range c.GetFilters() {
			path := fmt.Sprintf("%s.filters[%d]", path, i)
			m := &hcmv3.HttpConnectionManager{}
			if f.GetConfigDiscovery() != nil {
				l.add(path, "static-only", "filters must stand in the bootstrap")
			} else if f.GetTypedConfig() == nil || f.GetTypedConfig().UnmarshalTo(m) != nil {
				l.add(path, "bypass", "%s leads past the processor: only http_connection_manager", f.GetName())
			} else if l.manager(path+".typed_config", m) {
				leads = true
			}
		}
	}
	for i, c := range li.GetFilterChains() {
		chain(fmt.Sprintf("%s.filter_chains[%d]", path, i), c)
	}
	if c := li.GetDefaultFilterChain(); c != nil {
		chain(path+".default_filter_chain", c)
	}
	return leads
}

// manager checks a connection manager and reports whether it leads to the
// processor. One that only answers by itself (direct responses, redirects)
// needs no processor.
func (l *linter) manager(path string, m *hcmv3.HttpConnectionManager) bool {
	l.known(path, m)
	reaches := m.GetRouteConfig() == nil
	for _, v := range m.GetRouteConfig().GetVirtualHosts() {
		for _, r := range v.GetRoutes() {
			if r.GetDirectResponse() == nil && r.GetRedirect() == nil {
				reaches = true
			}
		}
	}
	for i, a := range m.GetAccessLog() {
		l.accessLog(fmt.Sprintf("%s.access_log[%d]", path, i), a.GetTypedConfig())
	}
	if m.GetHttp2ProtocolOptions().GetAllowConnect() {
		l.add(path+".http2_protocol_options.allow_connect", "no-upgrades", "remove allow_connect: a tunnel is no longer HTTP that the processor reads")
	}
	l.httpFilters(path, m, reaches)
	l.routes(path+".route_config", m.GetRouteConfig(), reaches)
	if !reaches {
		return false
	}
	if m.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction() != corev3.HttpProtocolOptions_REJECT_REQUEST {
		l.add(path+".common_http_protocol_options.headers_with_underscores_action", "underscores", "set headers_with_underscores_action: REJECT_REQUEST: many servers read _ as -")
	}
	if m.GetPathWithEscapedSlashesAction() != hcmv3.HttpConnectionManager_REJECT_REQUEST {
		l.add(path+".path_with_escaped_slashes_action", "escaped-slashes", "set path_with_escaped_slashes_action: REJECT_REQUEST: the upstream may read the path otherwise than the processor")
	}
	if !m.GetNormalizePath().GetValue() {
		l.add(path+".normalize_path", "normalize-path", "set normalize_path: true: the upstream may read the path otherwise than the processor")
	}
	if !m.GetMergeSlashes() {
		l.add(path+".merge_slashes", "normalize-path", "set merge_slashes: true: the upstream may read the path otherwise than the processor")
	}
	if t := m.GetStreamIdleTimeout(); t != nil && t.AsDuration() <= 0 {
		l.add(path+".stream_idle_timeout", "idle-timeout", "an idle timeout of 0 lets a silent exchange stay for ever")
	}
	if t := m.GetDelayedCloseTimeout(); t == nil || t.AsDuration() != 0 && t.AsDuration() < 10*time.Second {
		l.add(path+".delayed_close_timeout", "delayed-close", "set delayed_close_timeout to 10s or more: its default of 1s cuts an answer off whose reader pauses, where the connection ends with it")
	}
	l.earlyMutations(path+".early_header_mutation_extensions", m.GetEarlyHeaderMutationExtensions())
	if f := m.GetLocalReplyConfig().GetBodyFormat(); f.GetJsonFormat().GetFields()["error"] == nil {
		l.add(path+".local_reply_config", "local-replies", "local_reply_config.body_format must be BigQuery's error shape: clients cannot read Envoy's own texts")
	}
	return true
}

// earlyMutations checks what happens to the headers before anything reads them.
func (l *linter) earlyMutations(path string, extensions []*corev3.TypedExtensionConfig) {
	var removed, prefix, identity bool
	for i, x := range extensions {
		path := fmt.Sprintf("%s[%d]", path, i)
		h := &earlyv3.HeaderMutation{}
		if x.GetTypedConfig() == nil || x.GetTypedConfig().UnmarshalTo(h) != nil {
			l.add(path, "upstream-header", "%s is not a header mutation: what it does to the headers is unknown here", x.GetName())
			continue
		}
		for j, m := range h.GetMutations() {
			path := fmt.Sprintf("%s.typed_config.mutations[%d]", path, j)
			switch a := m.GetAction().(type) {
			case *mutationv3.HeaderMutation_Remove:
				removed = removed || strings.EqualFold(a.Remove, UpstreamHeader)
			case *mutationv3.HeaderMutation_RemoveOnMatch_:
				k := a.RemoveOnMatch.GetKeyMatcher()
				prefix = prefix || strings.EqualFold(k.GetPrefix(), "x-envoy-")
			case *mutationv3.HeaderMutation_Append:
				key := strings.ToLower(a.Append.GetHeader().GetKey())
				switch {
				case key == UpstreamHeader || strings.HasPrefix(key, "x-envoy-"):
					l.add(path, "upstream-header", "%s is set here: only the processor may", key)
				case key == "accept-encoding":
					identity = a.Append.GetHeader().GetValue() == "identity" && (a.Append.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
				case key == "authorization":
					l.add(path, "upstream-header", "authorization is set here: the caller's token decides who is calling")
				}
			}
		}
	}
	if !removed {
		l.add(path, "upstream-header", "remove %s from the client's headers first: else the client chooses the upstream", UpstreamHeader)
	}
	if !prefix {
		l.add(path, "envoy-headers", "remove the client's headers with the prefix x-envoy- first (remove_on_match): they can ask for retries and timeouts")
	}
	if !identity {
		l.add(path, "accept-encoding", "overwrite accept-encoding with identity: a compressed response cannot be masked or read back")
	}
}

func (l *linter) httpFilters(path string, m *hcmv3.HttpConnectionManager, reaches bool) {
	const (
		other = iota
		extProc
		rbac
		router
	)
	path += ".http_filters"
	var kinds []int
	for i, f := range m.GetHttpFilters() {
		path := fmt.Sprintf("%s[%d]", path, i)
		if f.GetDisabled() || f.GetIsOptional() {
			l.add(path, "disabled-filter", "%s must not be disabled or optional", f.GetName())
		}
		if f.GetConfigDiscovery() != nil {
			l.add(path, "static-only", "filters must stand in the bootstrap")
			kinds = append(kinds, other)
			continue
		}
		message, err := f.GetTypedConfig().UnmarshalNew()
		if err != nil {
			l.add(path, "filters", "%s has no configuration that is known here", f.GetName())
			kinds = append(kinds, other)
			continue
		}
		l.known(path+".typed_config", message)
		switch c := message.(type) {
		case *extprocv3.ExternalProcessor:
			kinds = append(kinds, extProc)
			l.extProc(path+".typed_config", c)
		case *rbacv3.RBAC:
			kinds = append(kinds, rbac)
		case *routerv3.Router:
			kinds = append(kinds, router)
			for i, a := range c.GetUpstreamLog() {
				l.accessLog(fmt.Sprintf("%s.typed_config.upstream_log[%d]", path, i), a.GetTypedConfig())
			}
			if reaches && !c.GetSuppressEnvoyHeaders() {
				l.add(path, "router", "set suppress_envoy_headers: true: Envoy's own headers stay inside")
			}
		default:
			kinds = append(kinds, other)
			l.add(path, "filters", "%s has no place: only ext_proc, RBAC and the router; another filter can answer or change what was recorded", f.GetName())
		}
	}
	if !reaches {
		return
	}
	count := 0
	for _, k := range kinds {
		if k == extProc {
			count++
		}
	}
	if count == 0 {
		l.add(path, "bypass", "this listener reaches upstreams without the processor: add ext_proc")
		return
	}
	if count > 1 {
		l.add(path, "one-ext-proc", "%d ext_proc filters: two of them truncate bodies", count)
	}
	at := slices.Index(kinds, extProc)
	if at+1 >= len(kinds) || kinds[at+1] != rbac {
		l.add(fmt.Sprintf("%s[%d]", path, at), "rbac-behind", "RBAC must stand right behind ext_proc: a processor that closes its stream early lets the request pass")
	} else {
		c := &rbacv3.RBAC{}
		p := fmt.Sprintf("%s[%d]", path, at+1)
		if err := m.GetHttpFilters()[at+1].GetTypedConfig().UnmarshalTo(c); err != nil || !admits(c.GetRules()) {
			l.add(p+".typed_config", "admission", "RBAC must allow only what has %s.%s: true in the dynamic metadata, in one policy for all requests", MetadataNamespace, AdmittedKey)
		}
	}
	for i := at + 2; i < len(kinds); i++ {
		if kinds[i] != router {
			l.add(fmt.Sprintf("%s[%d]", path, i), "after-ext-proc", "behind ext_proc stand RBAC and the router, nothing else")
		}
	}
	if len(kinds) == 0 || kinds[len(kinds)-1] != router {
		l.add(path, "filters", "the router must be the last filter")
	}
}

// admits reports whether the rules let only admitted requests through.
func admits(rules *rbacconfigv3.RBAC) bool {
	if rules.GetAction() != rbacconfigv3.RBAC_ALLOW || len(rules.GetPolicies()) != 1 {
		return false
	}
	for _, p := range rules.GetPolicies() {
		if len(p.GetPrincipals()) != 1 {
			return false
		}
		m := p.GetPrincipals()[0].GetMetadata() //lint:ignore SA1019 deprecated, and as good a lock: a mesh may still use it
		if s := p.GetPrincipals()[0].GetSourcedMetadata(); s != nil {
			if s.GetMetadataSource() != rbacconfigv3.MetadataSource_DYNAMIC {
				return false
			}
			m = s.GetMetadataMatcher()
		}
		path := m.GetPath()
		if m.GetFilter() != MetadataNamespace || len(path) != 1 || path[0].GetKey() != AdmittedKey || !m.GetValue().GetBoolMatch() || m.GetInvert() {
			return false
		}
	}
	return true
}

func (l *linter) extProc(path string, c *extprocv3.ExternalProcessor) {
	mode := c.GetProcessingMode()
	for _, f := range []struct {
		name string
		ok   bool
		want string
	}{
		{"request_header_mode", mode.GetRequestHeaderMode() == extprocv3.ProcessingMode_SEND || mode != nil && mode.GetRequestHeaderMode() == extprocv3.ProcessingMode_DEFAULT, "SEND"},
		{"response_header_mode", mode.GetResponseHeaderMode() == extprocv3.ProcessingMode_SEND || mode != nil && mode.GetResponseHeaderMode() == extprocv3.ProcessingMode_DEFAULT, "SEND"},
		{"request_body_mode", mode.GetRequestBodyMode() == extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED, "FULL_DUPLEX_STREAMED"},
		{"response_body_mode", mode.GetResponseBodyMode() == extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED, "FULL_DUPLEX_STREAMED"},
		{"request_trailer_mode", mode.GetRequestTrailerMode() == extprocv3.ProcessingMode_SEND, "SEND"},
		{"response_trailer_mode", mode.GetResponseTrailerMode() == extprocv3.ProcessingMode_SEND, "SEND"},
	} {
		if !f.ok {
			l.add(path+".processing_mode."+f.name, "modes", "%s must be %s: everything passes through the processor, whole", f.name, f.want)
		}
	}
	if c.GetRouteCacheAction() != extprocv3.ExternalProcessor_DEFAULT {
		l.add(path+".route_cache_action", "route-cache", "route_cache_action must be DEFAULT: the route is computed again when the processor has chosen the upstream")
	}
	if !slices.Contains(c.GetMetadataOptions().GetReceivingNamespaces().GetUntyped(), MetadataNamespace) {
		l.add(path+".metadata_options", "metadata", "metadata_options.receiving_namespaces.untyped must hold %s: RBAC reads the admission there", MetadataNamespace)
	}
	l.mutationRules(path+".mutation_rules", c.GetMutationRules())
	name := c.GetGrpcService().GetEnvoyGrpc().GetClusterName()
	if c.GetGrpcService().GetEnvoyGrpc() == nil {
		l.add(path+".grpc_service", "processor", "reach the processor by envoy_grpc: then its cluster is checked here")
	} else if l.clusters[name] == nil {
		l.add(path+".grpc_service", "processor", "the cluster %q is not in the bootstrap", name)
	}
	l.processors[name] = true
}

func (l *linter) mutationRules(path string, r *mutationv3.HeaderMutationRules) {
	if !r.GetDisallowIsError().GetValue() {
		l.add(path+".disallow_is_error", "mutation-rules", "set disallow_is_error: true: else a change that is not allowed, like that of the caller's token, is dropped in silence")
	}
	if r.GetAllowAllRouting().GetValue() {
		l.add(path+".allow_all_routing", "mutation-rules", "remove allow_all_routing: host, scheme and method stay as they came")
	}
	if r.GetDisallowAll().GetValue() || r.GetDisallowSystem().GetValue() {
		l.add(path, "mutation-rules", "remove disallow_all and disallow_system: the processor must set :path")
	}
	if x := r.GetDisallowExpression().GetRegex(); x != "" {
		re, err := regexp.Compile("^(?:" + x + ")$")
		for _, h := range []string{UpstreamHeader, ":path", "authorization"} {
			if err != nil || re.MatchString(h) {
				l.add(path+".disallow_expression", "mutation-rules", "the processor must be able to set %s", h)
			}
		}
	}
}

func (l *linter) routes(path string, c *routev3.RouteConfiguration, reaches bool) {
	if c == nil {
		if reaches {
			l.add(path, "one-route", "route_config is missing")
		}
		return
	}
	l.known(path, c)
	total := 0
	for i, v := range c.GetVirtualHosts() {
		path := fmt.Sprintf("%s.virtual_hosts[%d]", path, i)
		l.known(path, v)
		for j, r := range v.GetRoutes() {
			total++
			path := fmt.Sprintf("%s.routes[%d]", path, j)
			l.known(path, r)
			if r.GetRoute() != nil {
				l.route(path, r)
			}
		}
		if reaches && !slices.Equal(v.GetDomains(), []string{"*"}) {
			l.add(path+".domains", "one-route", `domains must be ["*"]`)
		}
	}
	if reaches && (total != 1 || len(c.GetVirtualHosts()) != 1) {
		l.add(path, "one-route", "one virtual host with one route for all: the processor decides where a request goes")
	}
}

func (l *linter) route(path string, r *routev3.Route) {
	m := r.GetMatch()
	if m.GetPrefix() != "/" || len(m.GetHeaders()) > 0 || len(m.GetQueryParameters()) > 0 || m.GetRuntimeFraction() != nil || m.GetGrpc() != nil || m.GetTlsContext() != nil || len(m.GetDynamicMetadata()) > 0 || len(m.GetFilterState()) > 0 || len(m.GetCookies()) > 0 {
		l.add(path+".match", "one-route", "the route must match the prefix / and nothing else")
	}
	a := r.GetRoute()
	path += ".route"
	l.known(path, a)
	if a.GetClusterHeader() != UpstreamHeader {
		l.add(path, "cluster-header", "the cluster must come from cluster_header: %s", UpstreamHeader)
	}
	if !a.GetAutoHostRewrite().GetValue() {
		l.add(path, "host", "set auto_host_rewrite: true: the upstream must see its own host, not one of the client's choice")
	}
	if t := a.GetTimeout(); t == nil || t.AsDuration() != 0 {
		l.add(path, "timeout", "set timeout: 0s: long polls and large results take longer than any fixed time; silence is bounded by stream_idle_timeout")
	}
	if !slices.ContainsFunc(r.GetRequestHeadersToRemove(), func(h string) bool { return strings.EqualFold(h, UpstreamHeader) }) {
		l.add(path, "cluster-header", "remove %s from what goes upstream (request_headers_to_remove)", UpstreamHeader)
	}
}

// accessLog refuses formats in which a credential can stand.
func (l *linter) accessLog(path string, config *anypb.Any) {
	if config == nil {
		return
	}
	message, err := config.UnmarshalNew()
	if err != nil {
		return
	}
	var format interface {
		GetLogFormat() *corev3.SubstitutionFormatString
	}
	switch c := message.(type) {
	case *filelogv3.FileAccessLog:
		format = c
	case *streamlogv3.StdoutAccessLog:
		format = c
	case *streamlogv3.StderrAccessLog:
		format = c
	default:
		l.add(path, "access-log", "only file, stdout and stderr: what %s sends elsewhere is unknown here", config.GetTypeUrl())
		return
	}
	f := format.GetLogFormat()
	if f == nil {
		l.add(path, "access-log", "set log_format: the default one logs query strings, in which credentials may stand")
		return
	}
	text, err := protojson.Marshal(f)
	if err != nil {
		l.add(path, "access-log", "log_format: %v", err)
		return
	}
	if leak := leaks.Find(text); leak != nil {
		l.add(path, "access-log", "%s can hold a credential: use %%PATH(NQ)%% for the path, and no authorization or cookie", leak)
	}
}

var leaks = regexp.MustCompile(`(?i)(REQ|REQ_WITHOUT_QUERY)?\([^)]*(authorization|cookie|api-key|access-token)[^)]*\)|%REQ\([^)]*(:path|original-path)[^)]*\)|%PATH(\((WQ)?[^N)]*\))?%|%QUERY_PARAM[^%]*%|%REQUEST_HEADERS?[^%]*%|%DYNAMIC_METADATA[^%]*%`)

func (l *linter) cluster(path string, c *clusterv3.Cluster) {
	l.known(path, c)
	if c.GetType() == clusterv3.Cluster_EDS || c.GetType() == clusterv3.Cluster_ORIGINAL_DST || c.GetClusterType() != nil {
		l.add(path+".type", "static-only", "the endpoints must stand in the bootstrap: STATIC, STRICT_DNS or LOGICAL_DNS")
	}
	http2 := false
	for key, any := range c.GetTypedExtensionProtocolOptions() {
		o := &upstreamhttpv3.HttpProtocolOptions{}
		if any.UnmarshalTo(o) != nil {
			l.add(path+".typed_extension_protocol_options", "unexpected-field", "%s has no place in the contract", key)
			continue
		}
		l.known(path+".typed_extension_protocol_options", o)
		http2 = http2 || o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil
	}
	if strings.HasSuffix(c.GetName(), storageSuffix) && !http2 {
		l.add(path+".typed_extension_protocol_options", "storage-http2", "%s carries gRPC: set explicit_http_config with http2_protocol_options", c.GetName())
	}
	sockets := []*corev3.TransportSocket{c.GetTransportSocket()}
	if m := c.GetTransportSocketMatches(); len(m) > 0 {
		sockets = nil
		for _, s := range m {
			sockets = append(sockets, s.GetTransportSocket())
		}
	}
	processor := l.processors[c.GetName()]
	for _, s := range sockets {
		if s.GetTypedConfig() == nil || s.GetTypedConfig().MessageIs((*rawv3.RawBuffer)(nil)) {
			if !local(c) {
				l.add(path, "plaintext", "%s is reached without TLS on a host that is not loopback: credentials would travel in the open", c.GetName())
			}
			continue
		}
		t := &tlsv3.UpstreamTlsContext{}
		if s.GetTypedConfig().UnmarshalTo(t) != nil {
			l.add(path+".transport_socket", "upstream-tls", "%s is not TLS", s.GetName())
			continue
		}
		l.tls(path+".transport_socket", t, processor)
	}
	if !processor {
		return
	}
	limited := false
	for _, t := range c.GetCircuitBreakers().GetThresholds() {
		limited = limited || t.GetMaxRequests() != nil
	}
	if !limited {
		l.add(path+".circuit_breakers", "processor", "set circuit_breakers max_requests: it caps the exchanges, and its default is 1024")
	}
	if len(c.GetHealthChecks()) == 0 || c.GetHealthChecks()[0].GetGrpcHealthCheck() == nil {
		l.add(path+".health_checks", "processor", "set a gRPC health check: a processor that is down is noticed before a request is")
	}
	if o := c.GetOutlierDetection(); o != nil && (o.GetEnforcingConsecutive_5Xx() == nil || o.GetEnforcingConsecutive_5Xx().GetValue() != 0) {
		l.add(path+".outlier_detection", "processor", "set enforcing_consecutive_5xx: 0: errors that the processor answers must not eject it")
	}
}

func (l *linter) tls(path string, t *tlsv3.UpstreamTlsContext, mutual bool) {
	c := t.GetCommonTlsContext()
	v := c.GetValidationContext()
	if combined := c.GetCombinedValidationContext(); combined != nil {
		v = combined.GetDefaultValidationContext()
	}
	if c.GetValidationContextSdsSecretConfig() == nil && c.GetCombinedValidationContext() == nil && v.GetTrustedCa() == nil {
		l.add(path, "upstream-tls", "set trusted_ca: without it Envoy verifies no certificate (it does not implement system_root_certs)")
	}
	if v.GetTrustChainVerification() == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED {
		l.add(path, "upstream-tls", "remove trust_chain_verification: ACCEPT_UNTRUSTED")
	}
	if !(t.GetAutoSniSanValidation() && t.GetSni() != "") && len(v.GetMatchTypedSubjectAltNames()) == 0 {
		l.add(path, "upstream-tls", "check the name in the certificate: sni with auto_sni_san_validation, or match_typed_subject_alt_names")
	}
	if mutual && len(c.GetTlsCertificates()) == 0 && len(c.GetTlsCertificateSdsSecretConfigs()) == 0 {
		l.add(path, "processor", "set a client certificate: the processor takes mutual TLS only")
	}
}

// local reports whether all endpoints are UNIX sockets or loopback addresses.
func local(c *clusterv3.Cluster) bool {
	n := 0
	for _, e := range c.GetLoadAssignment().GetEndpoints() {
		for _, lb := range e.GetLbEndpoints() {
			n++
			switch a := lb.GetEndpoint().GetAddress().GetAddress().(type) {
			case *corev3.Address_Pipe:
			case *corev3.Address_SocketAddress:
				if !loopback(a.SocketAddress.GetAddress()) {
					return false
				}
			default:
				return false
			}
		}
	}
	return n > 0
}

// anywhere looks at every message in the tree, through every Any: overrides
// and dynamic sources are refused wherever they hide.
func (l *linter) anywhere(path string, m protoreflect.Message, secret bool) {
	switch x := m.Interface().(type) {
	case *extprocv3.ExtProcPerRoute, *rbacv3.RBACPerRoute:
		if !slices.ContainsFunc(l.findings, func(f Finding) bool {
			return f.Rule == "no-per-route-override" && strings.HasPrefix(path, f.Path)
		}) {
			l.add(path, "no-per-route-override", "%s can switch ext_proc or RBAC off", m.Descriptor().Name())
		}
	case *corev3.ConfigSource:
		if !secret {
			l.add(path, "static-only", "configuration from elsewhere can change what this lint has checked")
		}
	case *tlsv3.SdsSecretConfig:
		secret = true
	case *anypb.Any:
		inner, err := x.UnmarshalNew()
		if err != nil {
			l.add(path, "parse", "%s is not known here", x.GetTypeUrl())
			return
		}
		l.anywhere(path, inner.ProtoReflect(), secret)
		return
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := path + "." + string(f.Name())
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					l.anywhere(path, v.Message(), secret)
					return true
				})
			}
		case f.IsList():
			if f.Message() != nil {
				for i := range v.List().Len() {
					l.anywhere(fmt.Sprintf("%s[%d]", path, i), v.List().Get(i).Message(), secret)
				}
			}
		case f.Message() != nil:
			l.anywhere(path, v.Message(), secret)
		}
		return true
	})
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

var position = regexp.MustCompile(`^\[(\d+):\d+\]`)

// errorLine is the line that a YAML error names.
func errorLine(err error) int {
	line := 0
	if m := position.FindStringSubmatch(firstLine(yaml.FormatError(err, false, false))); m != nil {
		_, _ = fmt.Sscan(m[1], &line)
	}
	return line
}

var quoted = regexp.MustCompile(`"([^"]+)"`)

// mentionedLine is the first line that holds a name which the error quotes.
func mentionedLine(text []byte, err error) int {
	if m := position.FindStringSubmatch(err.Error()); m != nil {
		line := 0
		_, _ = fmt.Sscan(m[1], &line)
		return line
	}
	for _, m := range quoted.FindAllStringSubmatch(err.Error(), -1) {
		n := 0
		for line := range bytes.Lines(text) {
			n++
			if bytes.Contains(line, []byte(m[1])) {
				return n
			}
		}
	}
	return 0
}
