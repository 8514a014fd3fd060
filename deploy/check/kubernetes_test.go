package check

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

var overlays = []string{"dev", "staging", "production"}

// podMonitor is what these files use of the Prometheus operator's type.
type podMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		JobLabel            string               `json:"jobLabel"`
		Selector            metav1.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Port          string `json:"port"`
			Path          string `json:"path"`
			Interval      string `json:"interval"`
			Authorization struct {
				Credentials corev1.SecretKeySelector `json:"credentials"`
			} `json:"authorization"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// kinds are the types that may occur.
var kinds = map[string]func() metav1.Object{
	"v1 Namespace":                            func() metav1.Object { return &corev1.Namespace{} },
	"v1 Service":                              func() metav1.Object { return &corev1.Service{} },
	"v1 ServiceAccount":                       func() metav1.Object { return &corev1.ServiceAccount{} },
	"v1 ConfigMap":                            func() metav1.Object { return &corev1.ConfigMap{} },
	"v1 Secret":                               func() metav1.Object { return &corev1.Secret{} },
	"apps/v1 StatefulSet":                     func() metav1.Object { return &appsv1.StatefulSet{} },
	"apps/v1 Deployment":                      func() metav1.Object { return &appsv1.Deployment{} },
	"policy/v1 PodDisruptionBudget":           func() metav1.Object { return &policyv1.PodDisruptionBudget{} },
	"networking.k8s.io/v1 Ingress":            func() metav1.Object { return &networkingv1.Ingress{} },
	"networking.k8s.io/v1 NetworkPolicy":      func() metav1.Object { return &networkingv1.NetworkPolicy{} },
	"autoscaling/v2 HorizontalPodAutoscaler":  func() metav1.Object { return &autoscalingv2.HorizontalPodAutoscaler{} },
	"monitoring.coreos.com/v1 PodMonitor":     func() metav1.Object { return &podMonitor{} },
	"monitoring.coreos.com/v1 PrometheusRule": func() metav1.Object { return &prometheusRule{} },
}

// overlay is what kustomize builds of one, decoded strictly: a field that its type does not
// have is an error.
type overlay struct {
	name    string
	objects []metav1.Object
}

func of[T metav1.Object](o *overlay) (out []T) {
	for _, x := range o.objects {
		if v, ok := x.(T); ok {
			out = append(out, v)
		}
	}
	return out
}

// copyKubernetes copies the tree, with the examples of secrets as the secrets.
func copyKubernetes(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "kubernetes"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func buildKustomize(dir string) ([]byte, error) {
	m, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, err
	}
	return m.AsYaml()
}

func build(t *testing.T, name string) *overlay {
	t.Helper()
	return buildAt(t, copyKubernetes(t), name)
}

// buildWith builds an overlay that was changed.
func buildWith(t *testing.T, name string, change func(dir string)) *overlay {
	t.Helper()
	root := copyKubernetes(t)
	change(filepath.Join(root, "overlays", name))
	return buildAt(t, root, name)
}

// buildAt builds an overlay of a copy.
func buildAt(t *testing.T, root, name string) *overlay {
	t.Helper()
	dir := filepath.Join(root, "overlays", name)
	examples, err := filepath.Glob(filepath.Join(dir, "*.example"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range examples {
		if err := os.Rename(e, strings.TrimSuffix(e, ".example")); err != nil {
			t.Fatal(err)
		}
	}
	b, err := buildKustomize(dir)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	o := &overlay{name: name}
	for doc := range bytes.SplitSeq(b, []byte("\n---\n")) {
		var m metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &m); err != nil {
			t.Fatal(err)
		}
		kind := kinds[m.APIVersion+" "+m.Kind]
		if kind == nil {
			t.Errorf("%s: what is %s %s?", name, m.APIVersion, m.Kind)
			continue
		}
		x := kind()
		if err := yaml.UnmarshalStrict(doc, x); err != nil {
			t.Errorf("%s: %v in\n%s", name, err, doc)
			continue
		}
		o.objects = append(o.objects, x)
	}
	return o
}

// workload is a pod template and who makes it.
type workload struct {
	name     string
	template corev1.PodTemplateSpec
	selector *metav1.LabelSelector
}

func (o *overlay) workloads() (out []workload) {
	for _, s := range of[*appsv1.StatefulSet](o) {
		out = append(out, workload{s.Name, s.Spec.Template, s.Spec.Selector})
	}
	for _, d := range of[*appsv1.Deployment](o) {
		out = append(out, workload{d.Name, d.Spec.Template, d.Spec.Selector})
	}
	return out
}

func selects(t *testing.T, s *metav1.LabelSelector, l map[string]string) bool {
	t.Helper()
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return sel.Matches(labels.Set(l))
}

// env is what a container's process gets, with references to other variables resolved as the
// kubelet does, and with what the kubelet knows of the pod.
func (o *overlay) env(t *testing.T, c *corev1.Container, pod string) map[string]string {
	t.Helper()
	env := map[string]string{}
	for _, from := range c.EnvFrom {
		found := false
		for _, s := range of[*corev1.Secret](o) {
			if from.SecretRef != nil && s.Name == from.SecretRef.Name {
				found = true
				for k, v := range s.Data {
					env[k] = string(v)
				}
			}
		}
		if !found {
			t.Errorf("%s: %s takes settings from what is not there: %+v", o.name, c.Name, from)
		}
	}
	for _, e := range c.Env {
		v := e.Value
		switch f := e.ValueFrom; {
		case f == nil:
		case f.FieldRef != nil && f.FieldRef.FieldPath == "metadata.name":
			v = pod
		case f.FieldRef != nil && f.FieldRef.FieldPath == "metadata.namespace":
			v = of[*corev1.Namespace](o)[0].Name
		case f.ResourceFieldRef != nil && f.ResourceFieldRef.Resource == "requests.memory" && f.ResourceFieldRef.Divisor.Value() == 1:
			v = fmt.Sprint(c.Resources.Requests.Memory().Value())
		case f.ConfigMapKeyRef != nil:
			for _, m := range of[*corev1.ConfigMap](o) {
				if m.Name == f.ConfigMapKeyRef.Name {
					v = m.Data[f.ConfigMapKeyRef.Key]
				}
			}
			if v == "" {
				t.Errorf("%s: %s of %s is nowhere", o.name, e.Name, c.Name)
			}
		case f.SecretKeyRef != nil:
			v = o.secret(t, *f.SecretKeyRef)
		default:
			t.Errorf("%s: %s of %s: %+v", o.name, e.Name, c.Name, f)
		}
		for k, x := range env {
			v = strings.ReplaceAll(v, "$("+k+")", x)
		}
		if strings.Contains(v, "$(") {
			t.Errorf("%s: %s of %s refers to what is not set before it: %s", o.name, e.Name, c.Name, v)
		}
		env[e.Name] = v
	}
	return env
}

// secret is what stands in a Secret.
func (o *overlay) secret(t *testing.T, key corev1.SecretKeySelector) string {
	t.Helper()
	for _, s := range of[*corev1.Secret](o) {
		if v := string(s.Data[key.Key]); s.Name == key.Name && v != "" {
			return v
		}
	}
	t.Errorf("%s: there is no %s in a Secret %s", o.name, key.Key, key.Name)
	return ""
}

func TestKubernetes(t *testing.T) {
	running := both(t)
	for _, name := range overlays {
		t.Run(name, func(t *testing.T) {
			o := build(t, name)
			namespaces := of[*corev1.Namespace](o)
			if len(namespaces) != 1 || namespaces[0].Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
				t.Fatalf("namespaces: %+v", namespaces)
			}
			for _, x := range o.objects {
				if _, is := x.(*corev1.Namespace); !is && x.GetNamespace() != namespaces[0].Name {
					t.Errorf("%T %s is in namespace %q", x, x.GetName(), x.GetNamespace())
				}
			}
			w := o.workloads()
			if len(w) != 2 {
				t.Fatalf("%d workloads", len(w))
			}
			for _, w := range w {
				checkPod(t, o, w, running)
			}
			checkServices(t, o)
			checkPolicies(t, o)
			checkMonitors(t, o, running)
			for _, b := range of[*policyv1.PodDisruptionBudget](o) {
				if b.Spec.MaxUnavailable == nil || b.Spec.MaxUnavailable.IntValue() != 1 || b.Spec.MinAvailable != nil || !slices.ContainsFunc(w, func(w workload) bool { return selects(t, b.Spec.Selector, w.template.Labels) }) {
					t.Errorf("budget %s: %+v", b.Name, b.Spec)
				}
			}
			if n := len(of[*policyv1.PodDisruptionBudget](o)); n != 2 {
				t.Errorf("%d budgets", n)
			}
		})
	}
}

func checkPod(t *testing.T, o *overlay, w workload, running map[string]map[string]string) {
	t.Helper()
	s := w.template.Spec
	if !selects(t, w.selector, w.template.Labels) {
		t.Errorf("%s does not select its own pods", w.name)
	}
	if s.EnableServiceLinks == nil || *s.EnableServiceLinks {
		t.Errorf("%s: services become settings that the program does not know", w.name)
	}
	if s.AutomountServiceAccountToken == nil || *s.AutomountServiceAccountToken {
		t.Errorf("%s has a token for Kubernetes that it does not need", w.name)
	}
	if len(s.Containers) != 1 || len(s.InitContainers) != 0 {
		t.Fatalf("%s has %d containers", w.name, len(s.Containers))
	}
	c := &s.Containers[0]
	p := programs[c.Name]
	if p == nil || !slices.Equal(c.Command, []string{"/" + c.Name}) || len(c.Args) != 0 {
		t.Fatalf("%s runs %v %v as %s", w.name, c.Command, c.Args, c.Name)
	}
	if !strings.Contains(deployFile(t, "docker/Dockerfile"), "/"+c.Name) {
		t.Errorf("the image has no /%s", c.Name)
	}
	if name, tag, _ := strings.Cut(c.Image, ":"); !strings.HasSuffix(name, "dialring") || tag == "" || tag == "latest" {
		t.Errorf("%s has the image %s", w.name, c.Image)
	}
	// Of the profile "restricted", and more.
	sc, psc := c.SecurityContext, s.SecurityContext
	if sc == nil || psc == nil || psc.RunAsNonRoot == nil || !*psc.RunAsNonRoot || psc.RunAsUser == nil || *psc.RunAsUser == 0 || psc.SeccompProfile == nil || psc.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault ||
		sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem || sc.Capabilities == nil || !slices.Equal(sc.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(sc.Capabilities.Add) != 0 {
		t.Errorf("%s may do too much: %+v %+v", w.name, psc, sc)
	}
	for _, x := range psc.Sysctls {
		if x.Name != "net.ipv4.ip_local_port_range" { // the only one here that every cluster allows
			t.Errorf("%s wants the sysctl %s, which is not safe in the sense of Kubernetes", w.name, x.Name)
			continue
		}
		first, err := strconv.Atoi(strings.Fields(x.Value)[0])
		for _, port := range c.Ports {
			if err != nil || int(port.ContainerPort) >= first {
				t.Errorf("%s: connections out may take the port %d: %s %v", w.name, port.ContainerPort, x.Value, err)
			}
		}
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().Cmp(*c.Resources.Requests.Memory()) < 0 || !c.Resources.Limits.Cpu().IsZero() {
		t.Errorf("%s: resources %+v", w.name, c.Resources)
	}
	if s.Affinity == nil || s.Affinity.PodAntiAffinity == nil || len(s.TopologySpreadConstraints) == 0 || !selects(t, s.TopologySpreadConstraints[0].LabelSelector, w.template.Labels) {
		t.Errorf("%s is not spread", w.name)
	}
	env := o.env(t, c, w.name+"-0")
	for n := range env {
		p.knows(t, o.name+" "+w.name, n)
	}
	// Go collects before the kernel kills; what Go does not count has room beyond.
	if most, err := strconv.ParseInt(env["GOMEMLIMIT"], 10, 64); err != nil || most < 256<<20 || most > c.Resources.Limits.Memory().Value()*8/10 {
		t.Errorf("%s: GOMEMLIMIT is %q of %s: %v", w.name, env["GOMEMLIMIT"], c.Resources.Limits.Memory(), err)
	}
	// The ports are where it listens.
	byName, listens := map[string]string{}, map[string]string{}
	for _, x := range c.Ports {
		byName[x.Name] = fmt.Sprint(x.ContainerPort)
	}
	if _, key := env["DIALRING_ADMIN_KEY"]; key == (o.name == "dev") {
		t.Errorf("%s: with the admin key: %t, at %s", w.name, key, env["DIALRING_ADMIN_LISTEN"])
	}
	for setting := range listeners[p.name] {
		listens[p.port(t, env, setting)] = setting
		addr := p.settings[setting]
		if env["DIALRING_DEV"] != "" {
			addr = "127.0.0.1" + addr // what development mode makes of a default
		}
		if v, there := env[setting]; there {
			addr = v
		}
		if forwarded := o.name == "dev" && setting == "DIALRING_ADMIN_LISTEN"; !strings.HasPrefix(addr, ":") && !forwarded {
			t.Errorf("%s: nobody outside the pod reaches %s %s", w.name, setting, addr)
		}
	}
	if env["DIALRING_NATS_LISTEN"] != "" {
		listens[p.port(t, env, "DIALRING_NATS_LISTEN")] = "nats"
	}
	for name, port := range byName {
		if listens[port] == "" {
			t.Errorf("%s: nothing listens on %s, its port %s", w.name, port, name)
		}
	}
	if len(byName) != len(listens) {
		t.Errorf("%s has the ports %v and listens on %v", w.name, byName, listens)
	}
	for what, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if probe == nil || probe.HTTPGet == nil {
			t.Errorf("%s has no %s probe", w.name, what)
			continue
		}
		at := running[p.name][listens[byName[probe.HTTPGet.Port.String()]]]
		if at == "" {
			t.Errorf("%s: the %s probe asks port %s", w.name, what, probe.HTTPGet.Port.String())
			continue
		}
		if status, body := get(t, at, probe.HTTPGet.Path); status != 200 && (status != 503 || probe.HTTPGet.Path != "/readyz") {
			t.Errorf("%s: %s probe: %d %s", w.name, what, status, body)
		}
	}
	// Liveness must not be readiness: a node without NATS, or that drains, is alive.
	if c.LivenessProbe.HTTPGet.Path != "/healthz" || c.StartupProbe.HTTPGet.Path != "/healthz" {
		t.Errorf("%s: liveness by %s", w.name, c.LivenessProbe.HTTPGet.Path)
	}
	grace := time.Duration(*s.TerminationGracePeriodSeconds) * time.Second
	switch p.name {
	case "wsnode":
		p.drains(t, o.name, env, grace)
		checkNodeURLs(t, o, env)
	case "locator":
		if c.Lifecycle == nil || c.Lifecycle.PreStop == nil || c.Lifecycle.PreStop.Sleep == nil || grace < time.Duration(c.Lifecycle.PreStop.Sleep.Seconds)*time.Second+leaves {
			t.Errorf("%s ends while proxies still ask it, or is killed: %s", w.name, grace)
		}
		if c.ReadinessProbe.HTTPGet.Path != "/readyz" || env["DIALRING_EDGE"] != "true" {
			t.Errorf("%s: readiness by %s, and DIALRING_EDGE is %q", w.name, c.ReadinessProbe.HTTPGet.Path, env["DIALRING_EDGE"])
		}
	}
	startWith(t, o, p, env)
}

// A locator that relays is ready before there is a node, or none would ever come in. One that
// cannot get into NATS is alive and not ready, so that an update stops at it.
func TestLocatorReady(t *testing.T) {
	const right, wrong = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
	good := programs["locator"].run(t, map[string]string{"DIALRING_EDGE": "true", "DIALRING_NATS_LISTEN": "127.0.0.1:0", "DIALRING_NATS_TOKEN": right, "DIALRING_DATA_SYNC": "interval"})
	waitStatus(t, good["DIALRING_LISTEN"], "/readyz", http.StatusOK)
	bad := map[string]map[string]string{}
	for name, nats := range map[string]map[string]string{
		"a wrong password": {"DIALRING_NATS_URL": good["nats"], "DIALRING_NATS_TOKEN": wrong},
		"no NATS":          {"DIALRING_NATS_URL": "nats://127.0.0.1:1"},
	} {
		nats["DIALRING_EDGE"] = "true"
		bad[name] = programs["locator"].run(t, nats)
	}
	// What one that was started after them needs, they have had.
	late := programs["locator"].run(t, map[string]string{"DIALRING_EDGE": "true", "DIALRING_NATS_URL": good["nats"], "DIALRING_NATS_TOKEN": right})
	waitStatus(t, late["DIALRING_LISTEN"], "/readyz", http.StatusOK)
	for name, l := range bad {
		if status, body := get(t, l["DIALRING_LISTEN"], "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "NATS") {
			t.Errorf("%s: readyz: %d %s", name, status, body)
		}
		if status, body := get(t, l["DIALRING_LISTEN"], "/healthz"); status != http.StatusOK {
			t.Errorf("%s: healthz: %d %s", name, status, body)
		}
	}
}

// waitStatus polls until the path answers so.
func waitStatus(t *testing.T, addr, path string, want int) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		status, body := get(t, addr, path)
		if status == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s answers %d %s, want %d", path, status, body, want)
		}
	}
}

// startWith really starts a program with the settings of a pod, but for addresses.
func startWith(t *testing.T, o *overlay, p *program, env map[string]string) {
	t.Helper()
	mine := map[string]string{}
	for k, v := range env {
		if strings.HasPrefix(k, "DIALRING_") {
			mine[k] = v
		}
	}
	for s := range listeners[p.name] {
		delete(mine, s)
	}
	if mine["DIALRING_DATA_DIR"] != "" {
		mine["DIALRING_DATA_DIR"] = t.TempDir()
	}
	if mine["DIALRING_NATS_LISTEN"] != "" {
		mine["DIALRING_NATS_LISTEN"] = "127.0.0.1:0"
	}
	mine["DIALRING_LOG_FORMAT"] = "json"
	if o.name != "dev" {
		mine["DIALRING_DEV"] = "false"
		if u := mine["DIALRING_USER_JWKS_URL"]; u != "" { // it is fetched in the background, from nowhere here
			mine["DIALRING_USER_JWKS_URL"] = "http://127.0.0.1:1/"
		}
	}
	if file := mine["DIALRING_API_KEYS_FILE"]; file != "" {
		mine["DIALRING_API_KEYS_FILE"] = filledKeys(t, o, filepath.Base(file))
	}
	// In a name only the brackets of an example are wrong.
	mine["DIALRING_NATS_URL"] = strings.NewReplacer("<", "", ">", "").Replace(mine["DIALRING_NATS_URL"])
	if mine["DIALRING_NATS_URL"] == "" {
		delete(mine, "DIALRING_NATS_URL")
	}
	p.run(t, mine)
}

// filledKeys is the example of a file of API keys, with a digest of its own in each place.
func filledKeys(t *testing.T, o *overlay, name string) string {
	t.Helper()
	for _, s := range of[*corev1.Secret](o) {
		text, there := string(s.Data[name]), s.Data[name] != nil
		if !there {
			continue
		}
		for i := 1; strings.Contains(text, "<digest>"); i++ {
			text = strings.Replace(text, "<digest>", fmt.Sprintf("%064x", i), 1)
		}
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	t.Fatalf("%s: no Secret has %s", o.name, name)
	return ""
}

// checkNodeURLs compares what a node says of itself with its Service.
func checkNodeURLs(t *testing.T, o *overlay, env map[string]string) {
	t.Helper()
	set := of[*appsv1.StatefulSet](o)[0]
	if set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement || set.Spec.MinReadySeconds == 0 {
		t.Errorf("%s: %+v", set.Name, set.Spec)
	}
	i := slices.IndexFunc(of[*corev1.Service](o), func(s *corev1.Service) bool { return s.Name == set.Spec.ServiceName })
	if i < 0 {
		t.Fatalf("no service %s", set.Spec.ServiceName)
	}
	s := of[*corev1.Service](o)[i]
	if s.Spec.ClusterIP != corev1.ClusterIPNone || !s.Spec.PublishNotReadyAddresses {
		t.Errorf("a node that is not in the ring yet has no name: %+v", s.Spec)
	}
	ns := of[*corev1.Namespace](o)[0].Name
	if want := fmt.Sprintf("http://%s-0.%s.%s.svc:%s", set.Name, s.Name, ns, programs["wsnode"].port(t, env, "DIALRING_PEER_LISTEN")); env["DIALRING_PEER_URL"] != want {
		t.Errorf("peer URL %s, want %s", env["DIALRING_PEER_URL"], want)
	}
	want := "ws://localhost:8080/n/ws-0/v1/ws"
	if in := of[*networkingv1.Ingress](o); len(in) == 1 {
		rule := in[0].Spec.Rules[0]
		want = "wss://" + rule.Host + "/n/ws-0/v1/ws"
		if in[0].Spec.TLS[0].Hosts[0] != rule.Host {
			t.Errorf("the certificate is for %s, the domain is %s", in[0].Spec.TLS[0].Hosts[0], rule.Host)
		}
		var paths []string
		for _, x := range rule.HTTP.Paths {
			paths = append(paths, x.Path)
			if x.Backend.Service.Name != "dialring" {
				t.Errorf("%s goes to %s", x.Path, x.Backend.Service.Name)
			}
		}
		if !slices.Equal(paths, []string{"/v1/locate", "/n/"}) {
			t.Errorf("the Ingress opens %v", paths)
		}
	} else if o.name != "dev" {
		t.Errorf("%d Ingresses", len(in))
	}
	if env["DIALRING_NODE_URL"] != want {
		t.Errorf("node URL %s, want %s", env["DIALRING_NODE_URL"], want)
	}
}

// checkServices looks where each port of a Service, and each backend, leads.
func checkServices(t *testing.T, o *overlay) {
	t.Helper()
	services := of[*corev1.Service](o)
	for _, s := range services {
		pods := 0
		for _, w := range o.workloads() {
			if !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(w.template.Labels)) {
				continue
			}
			pods++
			for _, p := range s.Spec.Ports {
				if !hasPort(w, p.TargetPort) {
					t.Errorf("service %s, port %s: %s has no port %s", s.Name, p.Name, w.name, p.TargetPort.String())
				}
			}
		}
		if pods != 1 {
			t.Errorf("service %s selects %d workloads", s.Name, pods)
		}
	}
	for _, in := range of[*networkingv1.Ingress](o) {
		for _, x := range in.Spec.Rules[0].HTTP.Paths {
			if !slices.ContainsFunc(services, func(s *corev1.Service) bool {
				return s.Name == x.Backend.Service.Name && slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == x.Backend.Service.Port.Name })
			}) {
				t.Errorf("%s leads to %+v", x.Path, x.Backend.Service)
			}
		}
	}
}

func hasPort(w workload, port intstr.IntOrString) bool {
	return slices.ContainsFunc(w.template.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool {
		return p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal
	})
}

// checkPolicies lists who may reach what, and compares that with what is meant.
func checkPolicies(t *testing.T, o *overlay) {
	t.Helper()
	policies := of[*networkingv1.NetworkPolicy](o)
	if o.name == "dev" {
		if len(policies) != 0 {
			t.Errorf("%d policies", len(policies))
		}
		return
	}
	// A node's id is a label; a namespace is one that it carries.
	may := map[string][]string{}
	for _, p := range policies {
		if !slices.Equal(p.Spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) {
			t.Errorf("policy %s: %v", p.Name, p.Spec.PolicyTypes)
		}
		whom := p.Spec.PodSelector.MatchLabels["app.kubernetes.io/name"]
		for _, rule := range p.Spec.Ingress {
			if len(rule.From) == 0 || len(rule.Ports) == 0 {
				t.Errorf("policy %s lets everyone in, or to all ports", p.Name)
			}
			for _, from := range rule.From {
				who := "?"
				switch {
				case from.PodSelector != nil && from.NamespaceSelector == nil:
					for k, v := range from.PodSelector.MatchLabels {
						who = v
						if v == "true" {
							who = k
						}
					}
				case from.NamespaceSelector != nil && from.PodSelector == nil:
					for k := range from.NamespaceSelector.MatchLabels {
						who = "namespace " + k
					}
				}
				for _, port := range rule.Ports {
					k := whom + ":" + port.Port.String()
					may[k] = append(may[k], who)
				}
			}
		}
		for _, w := range o.workloads() {
			for _, rule := range p.Spec.Ingress {
				for _, port := range rule.Ports {
					if selects(t, &p.Spec.PodSelector, w.template.Labels) && !hasPort(w, *port.Port) {
						t.Errorf("policy %s: %s has no port %s", p.Name, w.name, port.Port.String())
					}
				}
			}
		}
	}
	want := map[string][]string{
		"dialring-node:clients":  {"dialring-locator"},
		"dialring-node:peers":    {"dialring-locator", "dialring-node"},
		"dialring-node:admin":    {"namespace dialring.dev/monitoring"},
		"dialring-locator:http":  {"namespace dialring.dev/ingress", "namespace dialring.dev/services", "dialring.dev/services"},
		"dialring-locator:admin": {"namespace dialring.dev/monitoring"},
		"nats:4222":              {"dialring-node", "dialring-locator", "dialring.dev/application", "nats"},
		"nats:6222":              {"nats"},
	}
	if !reflect.DeepEqual(may, want) {
		t.Errorf("who may reach what:\n%v\nwant\n%v", may, want)
	}
}

// checkMonitors looks for what is scraped, and for the autoscaler's metric, at running programs.
func checkMonitors(t *testing.T, o *overlay, running map[string]map[string]string) {
	t.Helper()
	monitored := 0
	for _, m := range of[*podMonitor](o) {
		for _, w := range o.workloads() {
			if !selects(t, &m.Spec.Selector, w.template.Labels) {
				continue
			}
			for _, e := range m.Spec.PodMetricsEndpoints {
				monitored++
				if e.Port != "admin" || !hasPort(w, intstr.FromString(e.Port)) {
					t.Errorf("monitor %s: port %s of %s", m.Name, e.Port, w.name)
				}
				c := &w.template.Spec.Containers[0]
				for key, want := range map[string]int{"": 401, adminKey: 200} {
					if status, _ := get(t, running[c.Name]["DIALRING_ADMIN_LISTEN"], e.Path, "Authorization", "Bearer "+key); status != want {
						t.Errorf("monitor %s: %s with the key %q answers %d", m.Name, e.Path, key, status)
					}
				}
				if key := o.secret(t, e.Authorization.Credentials); key != o.env(t, c, "x-0")["DIALRING_ADMIN_KEY"] {
					t.Errorf("monitor %s: %s has another key", m.Name, w.name)
				}
			}
		}
	}
	if o.name != "dev" && monitored != 2 {
		t.Errorf("%d workloads are monitored", monitored)
	}
	if o.name == "production" {
		checkScalers(t, o, running)
	}
}

// checkScalers looks whom autoscalers scale, by what, and whether a pod has the memory for as
// many sessions as one may get.
func checkScalers(t *testing.T, o *overlay, running map[string]map[string]string) {
	t.Helper()
	scalers := of[*autoscalingv2.HorizontalPodAutoscaler](o)
	if len(scalers) != 2 {
		t.Fatalf("%d autoscalers", len(scalers))
	}
	set, deployment := of[*appsv1.StatefulSet](o)[0], of[*appsv1.Deployment](o)[0]
	if set.Spec.Replicas != nil || deployment.Spec.Replicas != nil {
		t.Errorf("each apply undoes what the autoscalers did: %v, %v", set.Spec.Replicas, deployment.Spec.Replicas)
	}
	for kind, want := range map[string]struct {
		name, program, metric string
		each                  int64 // bytes of Go for a session; Sizing in the guide
		pod                   corev1.PodSpec
	}{
		"StatefulSet": {set.Name, "wsnode", "dialring_sessions", 8 << 10, set.Spec.Template.Spec},
		"Deployment":  {deployment.Name, "locator", "dialring_edge_sessions", 16 << 10, deployment.Spec.Template.Spec},
	} {
		i := slices.IndexFunc(scalers, func(s *autoscalingv2.HorizontalPodAutoscaler) bool { return s.Spec.ScaleTargetRef.Kind == kind })
		if i < 0 {
			t.Errorf("nobody scales the %s", kind)
			continue
		}
		s := scalers[i].Spec
		if s.ScaleTargetRef.Name != want.name || *s.MinReplicas < 2 || s.MaxReplicas <= *s.MinReplicas || len(s.Metrics) != 1 || s.Metrics[0].Pods.Metric.Name != want.metric {
			t.Fatalf("autoscaler: %+v", s)
		}
		if _, metrics := get(t, running[want.program]["DIALRING_ADMIN_LISTEN"], "/metrics", "Authorization", "Bearer "+adminKey); !strings.Contains(metrics, "\n"+want.metric+" ") {
			t.Errorf("a %s has no metric %s", want.program, want.metric)
		}
		if !strings.Contains(deployFile(t, "kubernetes/components/autoscaling/kustomization.yaml"), "seriesQuery: '"+want.metric+"{") {
			t.Errorf("no adapter's rule is told for %s", want.metric)
		}
		// Of the fewest one dies, and the others get its sessions. The kernel has half as much
		// again for each, and a dial takes more than a session that is idle.
		most := s.Metrics[0].Pods.Target.AverageValue.Value() * int64(*s.MinReplicas) / int64(*s.MinReplicas-1)
		r := want.pod.Containers[0].Resources
		if need := most * want.each * 3 / 2; r.Requests.Memory().Value() < need || r.Limits.Memory().Value() < need+most*want.each/2 {
			t.Errorf("%s: %d sessions want %d bytes of Go, and it has %+v", want.program, most, need, r)
		}
		down := s.Behavior.ScaleDown
		if *down.StabilizationWindowSeconds < 900 || len(down.Policies) != 1 || down.Policies[0].Value != 1 || down.Policies[0].PeriodSeconds < 300 {
			t.Errorf("it takes a %s away too fast: %+v", want.program, down)
		}
	}
}

// untracked fails unless git ignores a file of deploy and has not got it.
func untracked(t *testing.T, file string) {
	t.Helper()
	if out, err := exec.Command("git", "-C", "..", "rev-parse", "--is-inside-work-tree").CombinedOutput(); err != nil {
		t.Logf("no work tree of git, so nobody can be asked for %s: %v %s", file, err, out)
		return
	}
	// With --no-index a file that is tracked counts as ignored, too, if a pattern says so.
	if err := exec.Command("git", "-C", "..", "check-ignore", "-q", "--no-index", file).Run(); err != nil {
		t.Errorf("git does not ignore %s: %v", file, err)
	}
	if out, err := exec.Command("git", "-C", "..", "ls-files", "--", file).Output(); err != nil || len(out) > 0 {
		t.Errorf("git has %s: %v", out, err)
	}
}

// Without what an operator has to fill in there is nothing to apply, and nothing that could
// be filled in is in the repository.
// The locator of production finds its keys where the component puts them, as soon as they are
// filled in.
func TestKubernetesAPIKeys(t *testing.T) {
	o := build(t, "production")
	var locator corev1.PodSpec
	for _, d := range of[*appsv1.Deployment](o) {
		locator = d.Spec.Template.Spec
	}
	c := locator.Containers[0]
	file := o.env(t, &c, "locator-1")["DIALRING_API_KEYS_FILE"]
	if len(c.VolumeMounts) != 1 || len(locator.Volumes) != 1 || c.VolumeMounts[0].Name != locator.Volumes[0].Name || c.VolumeMounts[0].SubPath != "" || filepath.Dir(file) != c.VolumeMounts[0].MountPath {
		t.Fatalf("the file %q is in none of %+v", file, c.VolumeMounts)
	}
	for _, s := range of[*corev1.Secret](o) {
		if s.Name != locator.Volumes[0].Secret.SecretName {
			continue
		}
		var keys struct {
			Keys []struct {
				Name, SHA256 string
				Scopes       []string
			}
		}
		d := json.NewDecoder(bytes.NewReader(s.Data[filepath.Base(file)]))
		d.DisallowUnknownFields()
		if err := d.Decode(&keys); err != nil || len(keys.Keys) == 0 || keys.Keys[0].Name == "" || len(keys.Keys[0].Scopes) == 0 {
			t.Errorf("%+v, %v", keys, err)
		}
		return
	}
	t.Errorf("there is no Secret %s: has its name a hash?", locator.Volumes[0].Secret.SecretName)
}

func TestKubernetesSecrets(t *testing.T) {
	dir := copyKubernetes(t)
	for _, name := range []string{"staging", "production"} {
		files := []string{"admin.env", "node.env", "locator.env"}
		if name == "production" {
			files = append(files, "api-keys.json")
		}
		for _, file := range files { // who followed the guide has them
			if err := os.RemoveAll(filepath.Join(dir, "overlays", name, file)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := buildKustomize(filepath.Join(dir, "overlays", name)); err == nil {
			t.Errorf("%s is built without secrets", name)
		}
		for _, file := range files {
			untracked(t, filepath.Join("kubernetes", "overlays", name, file))
		}
	}
	b, err := buildKustomize(filepath.Join(dir, "base"))
	if err != nil || bytes.Contains(b, []byte("kind: Secret")) {
		t.Errorf("the base: %v\n%s", err, b)
	}
}

// The component with the keys of stored payloads gives nodes, and nobody else, the file that
// their setting names, as a part of a directory: only that changes in a pod that runs.
func TestKubernetesInboxKeys(t *testing.T) {
	dir := copyKubernetes(t)
	at := filepath.Join(dir, "overlays", "dev")
	k := filepath.Join(at, "kustomization.yaml")
	b, err := os.ReadFile(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k, append(b, "components: [../../components/inboxkeys]\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	o := buildAt(t, dir, "dev")
	nodes := 0
	for _, w := range o.workloads() {
		c, s := w.template.Spec.Containers[0], w.template.Spec
		file := ""
		for _, e := range c.Env {
			if e.Name == "DIALRING_INBOX_KEYS_FILE" {
				file = e.Value
			}
		}
		if c.Name != "wsnode" {
			if file != "" || slices.ContainsFunc(s.Volumes, func(v corev1.Volume) bool { return v.Secret != nil && v.Secret.SecretName == "dialring-inbox-keys" }) {
				t.Errorf("%s has the keys", w.name)
			}
			continue
		}
		nodes++
		if _, ok := programs["wsnode"].settings["DIALRING_INBOX_KEYS_FILE"]; !ok {
			t.Error("wsnode has no such setting")
		}
		i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.MountPath == filepath.Dir(file) && m.SubPath == "" && m.ReadOnly
		})
		if i < 0 {
			t.Fatalf("%s: nothing is mounted for %q: %+v", w.name, file, c.VolumeMounts)
		}
		if !slices.ContainsFunc(s.Volumes, func(v corev1.Volume) bool {
			return v.Name == c.VolumeMounts[i].Name && v.Secret != nil && v.Secret.SecretName == "dialring-inbox-keys" && v.Secret.DefaultMode == nil
		}) {
			t.Errorf("%s: volumes %+v", w.name, s.Volumes)
		}
	}
	if nodes != 1 {
		t.Errorf("%d workloads are nodes", nodes)
	}
}
