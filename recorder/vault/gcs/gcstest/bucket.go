package gcstest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"
)

// fill completes a new bucket with what the service gives every bucket.
func (s *Server) fill(doc map[string]any) {
	at := s.now().Format(time.RFC3339Nano)
	for k, v := range map[string]any{
		"kind": "storage#bucket", "id": doc["name"], "projectNumber": "1", "metageneration": "1", "location": "US",
		"locationType": "multi-region", "storageClass": "STANDARD", "timeCreated": at, "updated": at,
		"softDeletePolicy": map[string]any{"retentionDurationSeconds": "604800", "effectiveTime": at},
	} {
		if _, ok := doc[k]; !ok {
			doc[k] = v
		}
	}
	iam, _ := doc["iamConfiguration"].(map[string]any)
	if iam == nil {
		iam = map[string]any{}
	}
	if _, ok := iam["publicAccessPrevention"]; !ok {
		iam["publicAccessPrevention"] = "inherited"
	}
	doc["iamConfiguration"] = iam
	s.date(doc)
}

// date sets the times that the service sets.
func (s *Server) date(doc map[string]any) {
	at := s.now().Format(time.RFC3339Nano)
	for _, k := range []string{"retentionPolicy", "softDeletePolicy"} {
		if p, ok := doc[k].(map[string]any); ok && p["effectiveTime"] == nil {
			p["effectiveTime"] = at
		}
	}
}

func (s *Server) insertBucket(w http.ResponseWriter, r *http.Request, body []byte) {
	var doc map[string]any
	if json.Unmarshal(body, &doc) != nil {
		fail(w, http.StatusBadRequest, "parseError", "Parse Error")
		return
	}
	if r.URL.Query().Get("project") == "" {
		fail(w, http.StatusBadRequest, "required", "Required parameter: project")
		return
	}
	rec := httptest.NewRecorder()
	s.forward(rec, r, body)
	if rec.Code != http.StatusOK {
		copyTo(w, rec)
		return
	}
	if p, ok := doc["retentionPolicy"].(map[string]any); ok {
		delete(p, "isLocked")
	}
	if l, ok := doc["location"].(string); ok {
		doc["location"] = strings.ToUpper(l)
	}
	s.fill(doc)
	s.buckets[fmt.Sprint(doc["name"])] = doc
	answer(w, doc)
}

func (s *Server) getBucket(w http.ResponseWriter, name string) {
	doc := s.buckets[name]
	if doc == nil {
		fail(w, http.StatusNotFound, "notFound", "The specified bucket does not exist.")
		return
	}
	answer(w, doc)
}

// matches checks the condition on the metageneration.
func (s *Server) matches(w http.ResponseWriter, r *http.Request, doc map[string]any) bool {
	if m := r.URL.Query().Get("ifMetagenerationMatch"); m != "" && m != doc["metageneration"] {
		fail(w, http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
		return false
	}
	return true
}

func touch(doc map[string]any) {
	n, _ := strconv.ParseInt(fmt.Sprint(doc["metageneration"]), 10, 64)
	doc["metageneration"] = strconv.FormatInt(n+1, 10)
}

func (s *Server) patchBucket(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	doc := s.buckets[name]
	if doc == nil {
		fail(w, http.StatusNotFound, "notFound", "The specified bucket does not exist.")
		return
	}
	var patch map[string]any
	if json.Unmarshal(body, &patch) != nil {
		fail(w, http.StatusBadRequest, "parseError", "Parse Error")
		return
	}
	if !s.matches(w, r, doc) {
		return
	}
	if change, ok := patch["retentionPolicy"]; ok {
		old, _ := doc["retentionPolicy"].(map[string]any)
		fresh, _ := change.(map[string]any)
		if old["isLocked"] == true {
			before, _ := strconv.ParseInt(fmt.Sprint(old["retentionPeriod"]), 10, 64)
			after, _ := strconv.ParseInt(fmt.Sprint(fresh["retentionPeriod"]), 10, 64)
			if after < before {
				fail(w, http.StatusForbidden, "forbidden", fmt.Sprintf("Cannot reduce retention duration of a locked Retention Policy for bucket '%s'.", name))
				return
			}
			fresh["isLocked"] = true
		} else if fresh != nil {
			fresh["isLocked"] = false
		}
	}
	merge(doc, patch)
	s.date(doc)
	touch(doc)
	answer(w, doc)
}

// merge is RFC 7396.
func merge(doc, patch map[string]any) {
	for k, v := range patch {
		sub, isMap := v.(map[string]any)
		old, wasMap := doc[k].(map[string]any)
		switch {
		case v == nil:
			delete(doc, k)
		case isMap && wasMap:
			merge(old, sub)
		default:
			doc[k] = v
		}
	}
}

func (s *Server) deleteBucket(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	for key := range s.created {
		if strings.HasPrefix(key, name+"/") {
			fail(w, http.StatusConflict, "conflict", "The bucket you tried to delete is not empty.")
			return
		}
	}
	s.forward(w, r, body)
	delete(s.buckets, name)
}

func (s *Server) lock(w http.ResponseWriter, r *http.Request, name string) {
	doc := s.buckets[name]
	switch {
	case doc == nil:
		fail(w, http.StatusNotFound, "notFound", "The specified bucket does not exist.")
		return
	case r.URL.Query().Get("ifMetagenerationMatch") == "":
		fail(w, http.StatusBadRequest, "required", "Required parameter: ifMetagenerationMatch")
		return
	case !s.matches(w, r, doc):
		return
	}
	policy, _ := doc["retentionPolicy"].(map[string]any)
	if policy == nil {
		fail(w, http.StatusBadRequest, "invalid", fmt.Sprintf("Bucket '%s' has no retention policy.", name))
		return
	}
	policy["isLocked"] = true
	touch(doc)
	answer(w, doc)
}
