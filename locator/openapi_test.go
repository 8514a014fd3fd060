package locator

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/wire"
)

// document is openapi.json.
type document struct {
	schemas
	operations []*operation
}

// operation is a method of a path of it, its references followed.
type operation struct {
	method, path string
	object
	secured    string // name of the scheme; "": none
	parameters []object
}

func (o *operation) name() string { return o.method + " " + o.path }

func readDocument(t *testing.T) *document {
	t.Helper()
	root, err := decode(string(openAPIDocument))
	if err != nil {
		t.Fatal(err)
	}
	d := &document{schemas: schemas{root.(object)}}
	for path, item := range d.root["paths"].(object) {
		for method, o := range item.(object) {
			op := &operation{method: strings.ToUpper(method), path: path, object: o.(object)}
			for _, p := range listOf(op.object["parameters"]) {
				op.parameters = append(op.parameters, d.follow(t, p))
			}
			security, own := op.object["security"]
			if !own {
				security = d.root["security"]
			}
			for _, s := range listOf(security) {
				for name := range s.(object) {
					op.secured = name
					d.follow(t, object{"$ref": "#/components/securitySchemes/" + name})
				}
			}
			d.operations = append(d.operations, op)
		}
	}
	slices.SortFunc(d.operations, func(a, b *operation) int { return strings.Compare(a.path+a.method, b.path+b.method) })
	if len(d.operations) < 20 {
		t.Fatalf("the document has %d operations only", len(d.operations))
	}
	return d
}

// follow resolves a reference that must be there.
func (d *document) follow(t *testing.T, v any) object {
	t.Helper()
	m, err := d.resolve(v.(object))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func listOf(v any) []any { l, _ := v.([]any); return l }

// sorted lists the entries of a part of the document that may be absent.
func sorted(v any) []string {
	m, _ := v.(object)
	return slices.Sorted(maps.Keys(m))
}

// wildcards are the routes whose handlers look at the path themselves, and what they take.
// TestOpenAPIAnswers tries each of those, and what they must not take.
var wildcards = map[string][]string{
	"POST /v1/push/*":     {"/v1/push/{user}"},
	"GET /v1/users/*":     {"/v1/users/{user}"},
	"DELETE /v1/users/*":  {"/v1/users/{user}/sessions"},
	"GET /v1/groups/*":    {"/v1/groups/{group}", "/v1/groups/{group}/members"},
	"POST /v1/groups/*":   {"/v1/groups/{group}/members"},
	"PUT /v1/groups/*":    {"/v1/groups/{group}/members/{user}"},
	"DELETE /v1/groups/*": {"/v1/groups/{group}/members/{user}"},
}

// Every route is documented, and nothing else.
func TestOpenAPIRoutes(t *testing.T) {
	l, err := New(Config{Dev: "true"})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	used := map[string]bool{}
	for _, r := range l.handler().(*echo.Echo).Routes() {
		paths := []string{regexp.MustCompile(`:(\w+)`).ReplaceAllString(r.Path, "{$1}")}
		if strings.Contains(r.Path, "*") {
			paths = wildcards[r.Method+" "+r.Path]
			used[r.Method+" "+r.Path] = true
			if len(paths) == 0 {
				t.Errorf("%s %s is not in the table of wildcards", r.Method, r.Path)
			}
		}
		for _, p := range paths {
			want = append(want, r.Method+" "+p)
		}
	}
	for w := range wildcards {
		if !used[w] {
			t.Errorf("%s of the table of wildcards is no route", w)
		}
	}
	var got []string
	ids := map[any]bool{}
	for _, op := range readDocument(t).operations {
		got = append(got, op.name())
		if id := op.object["operationId"]; id == nil || ids[id] {
			t.Errorf("%s: operationId %v is missing or not the only one", op.name(), id)
		} else {
			ids[id] = true
		}
		var inPath []string
		for _, p := range op.parameters {
			if p["in"] == "path" {
				inPath = append(inPath, "{"+p["name"].(string)+"}")
			}
		}
		if names := regexp.MustCompile(`\{\w+\}`).FindAllString(op.path, -1); !slices.Equal(names, inPath) {
			t.Errorf("%s has the parameters %q in its path, and documents %q", op.name(), names, inPath)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Errorf("the routes are\n%s\nand documented are\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
}

// Every reference leads somewhere, and every component is used.
func TestOpenAPIReferences(t *testing.T) {
	d := readDocument(t)
	used := map[string]bool{}
	var walk func(v any, at string)
	walk = func(v any, at string) {
		switch v := v.(type) {
		case []any:
			for i, x := range v {
				walk(x, at+"/"+strconv.Itoa(i))
			}
		case object:
			if ref, ok := v["$ref"].(string); ok {
				used[ref] = true
				if _, err := d.resolve(v); err != nil {
					t.Errorf("%s: %v", at, err)
				}
				for name := range v { // the checker does not look at what stands beside a reference
					if name != "$ref" && name != "description" {
						t.Errorf("%s: %s beside a reference", at, name)
					}
				}
			}
			for name, x := range v {
				walk(x, at+"/"+name)
			}
		}
	}
	walk(d.root, "#")
	for _, kind := range []string{"parameters", "headers", "responses", "schemas"} {
		list := sorted(d.root["components"].(object)[kind])
		if len(list) == 0 {
			t.Errorf("there are no %s", kind)
		}
		for _, name := range list {
			if ref := "#/components/" + kind + "/" + name; !used[ref] {
				t.Errorf("%s is not used", ref)
			}
		}
	}
}

// examples are those of a part of the document that has content, by media type and name.
func (d *document) examples(t *testing.T, part object, f func(mediaType, name string, schema object, example object)) (n int) {
	t.Helper()
	content, _ := part["content"].(object)
	for _, mt := range sorted(content) {
		media := content[mt].(object)
		for _, name := range sorted(media["examples"]) {
			n++
			f(mt, name, media["schema"].(object), media["examples"].(object)[name].(object))
		}
	}
	return n
}

// Every example is valid, and there is one of each body.
func TestOpenAPIExamples(t *testing.T) {
	d := readDocument(t)
	bodies := map[string]object{}
	for _, op := range d.operations {
		if b, ok := op.object["requestBody"].(object); ok {
			bodies[op.name()+", request"] = b
		}
		for status, r := range op.object["responses"].(object) {
			if r := d.follow(t, r); r["content"] != nil {
				bodies[op.name()+", "+status] = r
			}
		}
		for _, p := range op.parameters {
			if err := d.checkText(t, p, p["example"].(string)); err != nil {
				t.Errorf("%s: the example of %s: %v", op.name(), p["name"], err)
			}
		}
	}
	for at, part := range bodies {
		for _, mt := range sorted(part["content"]) {
			if len(sorted(part["content"].(object)[mt].(object)["examples"])) == 0 {
				t.Errorf("%s: no example of %s", at, mt)
			}
		}
		d.examples(t, part, func(mt, name string, schema, example object) {
			if err := d.check(schema, example["value"], "it"); err != nil {
				t.Errorf("%s, %s, example %q: %v", at, mt, name, err)
			}
		})
	}
}

// checkText checks a value as it stands in a path, a query or a header.
func (d *document) checkText(t *testing.T, p object, text string) error {
	t.Helper()
	var v any = text
	switch schema := d.follow(t, p["schema"]); schema["type"] {
	case "integer":
		v = json.Number(text)
	case "boolean":
		b, err := strconv.ParseBool(text)
		if err != nil {
			return err
		}
		v = b
	}
	return d.check(p["schema"].(object), v, "it")
}

// ofWire are the types of answers of package wire.
var ofWire = []any{wire.LocateResponse{}, wire.RingRef{}, wire.Retry{}, wire.PushResult{}, wire.PushError{}, wire.BroadcastResult{}, wire.RingNode{},
	wire.RingResponse{}, wire.RingHandoff{}, wire.HandoffNode{}, wire.PlanResponse{}, wire.PlanMove{}, wire.UserResponse{}, wire.Session{}, wire.GroupResponse{},
	wire.GroupPushResult{}, wire.GroupFailed{}, wire.Problem{}}

// ofRequests are those of requests, which say in another way than by omitempty what
// must be there.
var ofRequests = map[string]any{"LocateRequest": wire.LocateRequest{}, "PlanRequest": wire.PlanRequest{}, "PlanNode": wire.PlanNode{},
	"PushToUsers PushMessages": manyRequest{}, "PushMessage": manyMessage{}, "StreamMessage": streamLine{}}

// The schemas have the fields of the types, and those the kinds.
func TestOpenAPITypes(t *testing.T) {
	d := readDocument(t)
	all := d.root["components"].(object)["schemas"].(object)
	types := map[string]any{}
	for _, v := range ofWire {
		types[reflect.TypeOf(v).Name()] = v
	}
	maps.Copy(types, ofRequests)
	for names, v := range types {
		properties, required := object{}, []string{}
		for name := range strings.FieldsSeq(names) {
			schema, ok := all[name].(object)
			if !ok {
				t.Errorf("there is no schema %s", name)
				continue
			}
			maps.Copy(properties, schema["properties"].(object))
			for _, r := range listOf(schema["required"]) {
				required = append(required, r.(string))
			}
		}
		var fields, always []string
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous || name == "-" {
				continue
			}
			fields = append(fields, name)
			if option != "omitempty" {
				always = append(always, name)
			}
			if p, ok := properties[name].(object); ok {
				if got, want := d.follow(t, p)["type"], typeOf(f.Type); want != "" && got != want {
					t.Errorf("%s.%s is of type %v, want %s", names, name, got, want)
				}
			}
		}
		slices.Sort(fields)
		slices.Sort(always)
		slices.Sort(required)
		if got := sorted(properties); !slices.Equal(got, fields) {
			t.Errorf("%s has the properties %q, want %q", names, got, fields)
		}
		if _, request := ofRequests[names]; !request && !slices.Equal(required, always) {
			t.Errorf("%s requires %q, want %q", names, required, always)
		}
	}
	// None is forgotten.
	for _, file := range []string{"../internal/wire/http.go", "../internal/wire/problem.go"} {
		inspect(t, file, func(n ast.Node) {
			if s, ok := n.(*ast.TypeSpec); ok && types[s.Name.Name] == nil {
				if _, ok := s.Type.(*ast.StructType); ok {
					t.Errorf("%s of %s is not compared", s.Name.Name, file)
				}
			}
		})
	}
	states := []any{wire.StateJoining, wire.StateActive, wire.StateSuspect, wire.StateDraining}
	if got := all["RingNode"].(object)["properties"].(object)["state"].(object)["enum"]; !reflect.DeepEqual(got, states) {
		t.Errorf("the states are %v, want %v", got, states)
	}
}

// typeOf is what a field is in JSON; "" if it is anything.
func typeOf(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[json.RawMessage]():
		return ""
	case t == reflect.TypeFor[time.Time]():
		return "string"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "array"
	case reflect.Struct, reflect.Map:
		return "object"
	default:
		return "integer"
	}
}

// inspect calls f with each node of a Go file.
func inspect(t *testing.T, file string, f func(ast.Node)) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(n ast.Node) bool { f(n); return true })
}

// inspectDirs does it with each file of some directories that is no test.
func inspectDirs(t *testing.T, f func(ast.Node), dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v %v", dir, files, err)
		}
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				inspect(t, file, f)
			}
		}
	}
}

// inLines are problems that only lines of a stream, or of a call with many, have.
var inLines = []string{"408 invalid_request", "503 draining"}

var statusOf = map[string]int{"StatusBadRequest": 400, "StatusUnauthorized": 401, "StatusForbidden": 403, "StatusNotFound": 404, "StatusMethodNotAllowed": 405, "StatusRequestTimeout": 408,
	"StatusRequestEntityTooLarge": 413, "StatusUnsupportedMediaType": 415, "StatusUnprocessableEntity": 422, "StatusTooManyRequests": 429,
	"StatusInternalServerError": 500, "StatusServiceUnavailable": 503, "StatusGatewayTimeout": 504, "StatusHTTPVersionNotSupported": 505}

// The codes are those of package wire, and the documented problems are those that the
// code makes, by status and code.
func TestOpenAPIProblems(t *testing.T) {
	d := readDocument(t)
	var codes []string
	value := map[string]string{}
	inspect(t, "../internal/wire/problem.go", func(n ast.Node) {
		s, ok := n.(*ast.ValueSpec)
		if !ok || len(s.Values) != 1 {
			return
		}
		if typ, ok := s.Type.(*ast.Ident); ok && typ.Name == "Code" {
			text, err := strconv.Unquote(s.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Error(err)
			}
			codes = append(codes, text)
			value[s.Names[0].Name] = text
		}
	})
	var documented []string
	for _, c := range listOf(d.root["components"].(object)["schemas"].(object)["Code"].(object)["enum"]) {
		documented = append(documented, c.(string))
	}
	if len(codes) == 0 || !slices.Equal(codes, documented) {
		t.Errorf("the codes are %q, and documented are %q", codes, documented)
	}

	made := map[string]bool{}
	inspectDirs(t, func(n ast.Node) {
		c, ok := n.(*ast.CallExpr)
		if !ok {
			return
		}
		if f, ok := c.Fun.(*ast.SelectorExpr); !ok || f.Sel.Name != "NewProblem" {
			return
		}
		code := value[c.Args[1].(*ast.SelectorExpr).Sel.Name]
		status := 0
		switch s := c.Args[0].(type) {
		case *ast.BasicLit:
			status, _ = strconv.Atoi(s.Value)
		case *ast.SelectorExpr:
			status = statusOf[s.Sel.Name]
			if s.Sel.Name == "Code" { // of an error of echo
				status = map[string]int{"not_found": 404, "method_not_allowed": 405}[code]
			}
		}
		if status == 0 || code == "" {
			t.Errorf("a problem with a status or code that this test cannot read: %v", c.Args[:2])
		}
		made[fmt.Sprintf("%d %s", status, code)] = true
	}, ".", "../internal/route", "../internal/httpd")
	for _, p := range inLines {
		if !made[p] {
			t.Errorf("%s is made nowhere", p)
		}
		delete(made, p)
	}
	examples := map[string]bool{}
	for _, op := range d.operations {
		for key, r := range op.object["responses"].(object) {
			d.examples(t, d.follow(t, r), func(mt, name string, _, example object) {
				if mt != wire.ProblemType {
					return
				}
				v := example["value"].(object)
				if status := fmt.Sprint(v["status"]); key != "default" && status != key {
					t.Errorf("%s, %s: the example %s has the status %s", op.name(), key, name, status)
				}
				status, _ := v["status"].(json.Number).Int64()
				if v["title"] != http.StatusText(int(status)) {
					t.Errorf("%s, %s: the example %s has the title %q", op.name(), key, name, v["title"])
				}
				examples[fmt.Sprintf("%v %v", v["status"], v["code"])] = true
			})
		}
	}
	if got, want := slices.Sorted(maps.Keys(examples)), slices.Sorted(maps.Keys(made)); !slices.Equal(got, want) {
		t.Errorf("the problems are\n%q, and documented are\n%q", want, got)
	}
}

// answerAPI is a node that answers every call of a locator.
func answerAPI(_ *fakeNode, b *peer.Batch) {
	bodies := map[peer.Op]string{
		peer.OpSessions:     `{"sessions":[{"id":"s-1","device":"web-1","node":"ws-1","connected_at":"2030-01-02T03:04:05.678Z","remote_addr":"192.0.2.1:5"}],"head":7}`,
		peer.OpKick:         `["s-1"]`,
		peer.OpPresence:     `{"sessions":{"alice":["s-1","s-2"]}}`,
		peer.OpPlan:         `{"ws-4":3}`,
		peer.OpGroupChange:  `{}`,
		peer.OpGroupMembers: `{"total":3,"members":["alice","bob"]}`,
		peer.OpGroupPush:    `{"members":2,"stored":1,"delivered":1,"failed":[{"user":"bob","code":"owner_unreachable","detail":"gone"}]}`,
	}
	for i := range b.Calls {
		in := &b.Calls[i]
		r := peer.Reply{Delivered: 1, Body: []byte(bodies[in.Op])}
		if in.Durable {
			r.Seq = 7
		}
		in.Reply(r)
	}
}

// asked is an answer of a locator.
type asked struct {
	status int
	header http.Header
	body   string
}

// ask sends a request of an operation. path is what stands for its parameters.
func ask(t *testing.T, l *Locator, method, path, query, contentType, body string, authorized bool) asked {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+l.addrs.Listen+path+"?"+query, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if authorized {
		req.Header.Set("Authorization", "Bearer dev")
	}
	// Of a request that says Connection: close, net/http does not take the body that a handler
	// left, and the reset may come before the answer.
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	c := http.Client{Timeout: patience, Transport: tr}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return asked{resp.StatusCode, resp.Header, string(b)}
}

// tries are the requests by which an operation is tried: one for each example.
func (d *document) tries(t *testing.T, op *operation, f func(name, path, query, contentType, body string)) {
	t.Helper()
	path := op.path
	for _, p := range op.parameters {
		if p["in"] == "path" {
			path = strings.ReplaceAll(path, "{"+p["name"].(string)+"}", url.PathEscape(p["example"].(string)))
		}
	}
	base := ""
	if op.secured == "userToken" {
		base = "user=alice"
	}
	body, _ := op.object["requestBody"].(object)
	n := d.examples(t, body, func(mt, name string, _, example object) {
		query, _ := example["x-query"].(string)
		query = strings.Trim(base+"&"+query, "&")
		if mt == "*/*" {
			f(mt+" "+name, path, query, "text/plain", example["value"].(string))
			return
		}
		b, err := json.Marshal(example["value"])
		if err != nil {
			t.Fatal(err)
		}
		f(mt+" "+name, path, query, mt, string(b))
	})
	if n == 0 {
		f("", path, base, "", "")
	}
}

// checkAnswer checks that an answer is as it is documented.
func (d *document) checkAnswer(t *testing.T, op *operation, a asked) {
	t.Helper()
	responses := op.object["responses"].(object)
	documented, ok := responses[strconv.Itoa(a.status)].(object)
	if !ok {
		t.Errorf("%s answers %d, which is not documented: %s", op.name(), a.status, a.body)
		return
	}
	r := d.follow(t, documented)
	for _, name := range sorted(r["headers"]) {
		h := d.follow(t, r["headers"].(object)[name])
		if h["required"] != true {
			t.Errorf("%s, %d: %s is not always there, which nothing checks", op.name(), a.status, name)
		}
		if err := d.checkText(t, h, a.header.Get(name)); err != nil {
			t.Errorf("%s, %d: the header %s: %v", op.name(), a.status, name, err)
		}
	}
	content, _ := r["content"].(object)
	if len(content) == 0 {
		if a.body != "" {
			t.Errorf("%s, %d: a body, which is not documented: %s", op.name(), a.status, a.body)
		}
		return
	}
	mt, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	media, ok := content[mt].(object)
	if err != nil || !ok {
		t.Errorf("%s, %d: the media type %q is not documented", op.name(), a.status, a.header.Get("Content-Type"))
		return
	}
	values := []string{a.body}
	if mt == ndjson {
		values = strings.Split(strings.TrimSpace(a.body), "\n")
	}
	for _, b := range values {
		var v any = b
		if mt != "text/plain" {
			if v, err = decode(b); err != nil {
				t.Errorf("%s, %d: %v in %s", op.name(), a.status, err, b)
				continue
			}
		}
		if err := d.check(media["schema"].(object), v, "it"); err != nil {
			t.Errorf("%s, %d: %v in %s", op.name(), a.status, err, b)
		}
	}
}

// notFound are what is answered at documented paths with other methods, other than 404 and
// 405: an id in a path has no slash.
var notFound = map[string]int{"GET /v1/users/{user}/sessions": 400}

// Every operation is answered as it is documented: each example of a request is taken,
// and who has no key is refused. Other methods of the paths are not there.
func TestOpenAPIAnswers(t *testing.T) {
	l := runLocator(t)
	join(t, l, "ws-1", answerAPI)
	d := readDocument(t)
	there := map[string]bool{}
	for _, op := range d.operations {
		there[op.name()] = true
		d.tries(t, op, func(name, path, query, contentType, body string) {
			a := ask(t, l, op.method, path, query, contentType, body, op.secured == "apiKey")
			if a.status < 200 || a.status > 299 {
				t.Errorf("%s, %s: %d %s", op.name(), name, a.status, a.body)
			}
			d.checkAnswer(t, op, a)
			if op.object["operationId"] == "presence" && !strings.Contains(a.body, "alice") { // it takes a body without users, too
				t.Errorf("presence with %s answers %s", body, a.body)
			}
			if op.object["operationId"] == "openapi" && a.body != string(openAPIDocument) {
				t.Error("the document that is served is another")
			}
			a = ask(t, l, op.method, path, "", contentType, body, false)
			if want := op.secured != ""; (a.status == 401) != want {
				t.Errorf("%s without a key: %d %s", op.name(), a.status, a.body)
			}
			d.checkAnswer(t, op, a)
		})
	}
	methods := []string{"DELETE", "GET", "PATCH", "POST", "PUT"}
	for _, op := range d.operations {
		for _, m := range methods {
			name := m + " " + op.path
			if there[name] {
				continue
			}
			there[name] = true // tried
			d.tries(t, op, func(_, path, query, contentType, body string) {
				a := ask(t, l, m, path, query, contentType, body, true)
				if a.status != 404 && a.status != 405 && a.status != notFound[name] {
					t.Errorf("%s is not documented, and answered with %d: %s", name, a.status, a.body)
				}
				d.checkAnswer(t, &operation{method: m, path: op.path, object: object{"responses": object{strconv.Itoa(a.status): object{
					"$ref": "#/components/responses/Other"}}}}, a)
			})
		}
	}
}

// What cannot be done is answered as it is documented.
func TestOpenAPIRefusals(t *testing.T) {
	l := runLocator(t)
	for _, c := range []<-chan struct{}{l.book.Published(), l.revoked.Known()} {
		select {
		case <-c:
		case <-time.After(patience):
			t.Fatal("the locator never starts")
		}
	}
	d := readDocument(t)
	for _, c := range []struct {
		op, path, contentType, body string
		want                        int
	}{
		{"POST /v1/nodes/{node}/drain", "/v1/nodes/nobody/drain", "", "", 404},
		{"POST /v1/broadcast", "/v1/broadcast", "text/plain", "x", 415},
		{"POST /v1/push/{user}", "/v1/push/alice", "", strings.Repeat("x", 1<<16+1), 413},
		{"POST /v1/push/{user}", "/v1/push/alice", "", "x", 503},
		{"GET /v1/users/{user}", "/v1/users/alice", "", "", 503},
		{"GET /v1/groups/{group}", "/v1/groups/team", "", "", 503},
		{"POST /v1/presence", "/v1/presence", "application/json", `{"users":["alice"]}`, 503},
		{"GET /readyz", "/readyz", "", "", 503},
		{"POST /v1/locate", "/v1/locate", "", "[]", 401},
	} {
		i := slices.IndexFunc(d.operations, func(o *operation) bool { return o.name() == c.op })
		if i < 0 {
			t.Errorf("there is no %s", c.op)
			continue
		}
		a := ask(t, l, d.operations[i].method, c.path, "", c.contentType, c.body, c.want != 401)
		if a.status != c.want {
			t.Errorf("%s: %d %s, want %d", c.op, a.status, a.body, c.want)
		}
		d.checkAnswer(t, d.operations[i], a)
	}
}

// refusesUnknown are the operations that take no name in the query that they do not know.
var refusesUnknown = []string{"DELETE /v1/users/{user}/sessions", "GET /v1/groups/{group}", "GET /v1/groups/{group}/members", "POST /v1/broadcast",
	"POST /v1/push", "POST /v1/push/{user}"}

// Every name that handlers look for in a query is documented, each operation takes those that it
// documents, and where unknown ones are refused it takes no other.
func TestOpenAPIQuery(t *testing.T) {
	l := runLocator(t)
	join(t, l, "ws-1", answerAPI)
	d := readDocument(t)
	words := map[string][]string{} // every name, with the examples of it
	for _, op := range d.operations {
		for _, p := range op.parameters {
			if p["in"] == "query" {
				name := p["name"].(string)
				words[name] = append(words[name], p["example"].(string))
			}
		}
	}
	if got, want := slices.Sorted(maps.Keys(words)), queryNames(t); !slices.Equal(got, want) {
		t.Errorf("handlers know %q, and documented are %q", want, got)
	}
	for _, op := range d.operations {
		own := map[string]string{}
		for _, p := range op.parameters {
			if p["in"] == "query" {
				own[p["name"].(string)] = p["example"].(string)
			}
		}
		taken := map[string]bool{}
		refuses := slices.Contains(refusesUnknown, op.name())
		d.tries(t, op, func(name, path, query, contentType, body string) {
			send := func(more, value string) asked {
				q, err := url.ParseQuery(query)
				if err != nil {
					t.Fatal(err)
				}
				q.Set(more, value)
				return ask(t, l, op.method, path, q.Encode(), contentType, body, op.secured == "apiKey")
			}
			for more, value := range own {
				a := send(more, value)
				d.checkAnswer(t, op, a)
				taken[more] = taken[more] || a.status < 300
				if strings.Contains(a.body, "the query has") {
					t.Errorf("%s, %s: %s is refused: %s", op.name(), name, more, a.body)
				}
			}
			a := send("unknown", "1")
			if (a.status == 400) != refuses || a.status >= 300 && a.status != 400 {
				t.Errorf("%s, %s: a name that nobody knows: %d %s", op.name(), name, a.status, a.body)
			}
			d.checkAnswer(t, op, a)
			if !refuses {
				return
			}
			for more, values := range words {
				if _, ok := own[more]; ok {
					continue
				}
				for _, value := range values {
					if a := send(more, value); a.status != 400 {
						t.Errorf("%s, %s: %s=%s is not documented: %d %s", op.name(), name, more, value, a.status, a.body)
					}
				}
			}
		})
		for more := range own {
			if !taken[more] {
				t.Errorf("%s: %s is documented and never taken", op.name(), more)
			}
		}
	}
	for _, name := range refusesUnknown {
		if !slices.ContainsFunc(d.operations, func(o *operation) bool { return o.name() == name }) {
			t.Errorf("%s is no operation", name)
		}
	}
}

// queryNames finds in the source the names that handlers look for: q.Get("x"), q.Has("x"), and
// what a variable called name, of a loop over the query, is compared with.
func queryNames(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	add := func(e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				found[s] = true
			}
		}
	}
	is := func(e ast.Expr, name string) bool {
		id, ok := e.(*ast.Ident)
		return ok && id.Name == name
	}
	inspectDirs(t, func(n ast.Node) {
		switch n := n.(type) {
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.SelectorExpr); ok && is(f.X, "q") && (f.Sel.Name == "Get" || f.Sel.Name == "Has") {
				add(n.Args[0])
			}
		case *ast.BinaryExpr:
			if n.Op == token.EQL && is(n.X, "name") {
				add(n.Y)
			}
		case *ast.SwitchStmt:
			if n.Tag == nil || !is(n.Tag, "name") {
				return
			}
			for _, c := range n.Body.List {
				for _, e := range c.(*ast.CaseClause).List {
					add(e)
				}
			}
		case *ast.SelectorExpr: // another way to read a query would escape this test
			if n.Sel.Name == "QueryParam" || n.Sel.Name == "FormValue" {
				t.Errorf("a handler uses %s: teach this test to read that", n.Sel.Name)
			}
		}
	}, ".")
	return slices.Sorted(maps.Keys(found))
}
