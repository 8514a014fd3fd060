package check

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// certificate is cert-manager's, with the fields that are used.
type certificate struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		SecretName  string   `json:"secretName"`
		IsCA        bool     `json:"isCA"`
		CommonName  string   `json:"commonName"`
		DNSNames    []string `json:"dnsNames"`
		Usages      []string `json:"usages"`
		Duration    metav1.Duration
		RenewBefore metav1.Duration
		PrivateKey  struct {
			Algorithm, RotationPolicy string
			Size                      int
		}
		IssuerRef struct{ Name, Kind string } `json:"issuerRef"`
	} `json:"spec"`
}

// issuer is cert-manager's.
type issuer struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		SelfSigned *struct{}
		CA         *struct {
			SecretName string `json:"secretName"`
		}
	} `json:"spec"`
}

// Production with the component for TLS within the cluster: the programs find the certificates, which
// are good for what they are for, and nodes advertise the name that is in theirs.
func TestKubernetesPeerTLS(t *testing.T) {
	kinds["cert-manager.io/v1 Certificate"] = func() metav1.Object { return &certificate{} }
	kinds["cert-manager.io/v1 Issuer"] = func() metav1.Object { return &issuer{} }
	defer delete(kinds, "cert-manager.io/v1 Certificate")
	defer delete(kinds, "cert-manager.io/v1 Issuer")
	o := buildWith(t, "production", func(dir string) {
		file := filepath.Join(dir, "kustomization.yaml")
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		with := bytes.Replace(b, []byte("components:\n"), []byte("components:\n  - ../../components/peertls\n"), 1)
		if bytes.Equal(b, with) {
			t.Fatal("production has no components")
		}
		if err := os.WriteFile(file, with, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	issuers, made := map[string]*issuer{}, map[string]*certificate{}
	for _, i := range of[*issuer](o) {
		issuers[i.Name] = i
	}
	for _, c := range of[*certificate](o) {
		made[c.Spec.SecretName] = c
		i := issuers[c.Spec.IssuerRef.Name]
		if i == nil || c.Spec.IssuerRef.Kind != "Issuer" || (i.Spec.SelfSigned != nil) != c.Spec.IsCA {
			t.Errorf("%s comes from %+v", c.Name, c.Spec.IssuerRef)
		}
		if c.Spec.RenewBefore.Hours() < 14*24 || c.Spec.Duration.Hours() <= c.Spec.RenewBefore.Hours() {
			t.Errorf("%s is renewed %v before it ends, the alert comes two weeks before", c.Name, c.Spec.RenewBefore)
		}
		if !c.Spec.IsCA && (!slices.Contains(c.Spec.Usages, "server auth") || !slices.Contains(c.Spec.Usages, "client auth")) {
			t.Errorf("%s is for %q only", c.Name, c.Spec.Usages)
		}
	}
	for _, i := range issuers {
		if i.Spec.CA != nil && (made[i.Spec.CA.SecretName] == nil || !made[i.Spec.CA.SecretName].Spec.IsCA) {
			t.Errorf("issuer %s signs with %q", i.Name, i.Spec.CA.SecretName)
		}
	}
	for _, w := range o.workloads() {
		c := w.template.Spec.Containers[0]
		env := o.env(t, &c, "ws-0")
		mount := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.ReadOnly && strings.HasPrefix(env["DIALRING_PEER_TLS_CERT_FILE"], m.MountPath+"/")
		})
		if mount < 0 {
			t.Fatalf("%s has its certificate nowhere", w.name)
		}
		volume := slices.IndexFunc(w.template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == c.VolumeMounts[mount].Name })
		if volume < 0 || w.template.Spec.Volumes[volume].Secret == nil || made[w.template.Spec.Volumes[volume].Secret.SecretName] == nil {
			t.Fatalf("%s has its certificate from nowhere: %+v", w.name, w.template.Spec.Volumes)
		}
		for setting, file := range map[string]string{"CERT": "tls.crt", "KEY": "tls.key", "CA": "ca.crt"} {
			if got := env["DIALRING_PEER_TLS_"+setting+"_FILE"]; got != c.VolumeMounts[mount].MountPath+"/"+file {
				t.Errorf("%s: the %s is in %s", w.name, setting, got)
			}
		}
		peer, ok := env["DIALRING_PEER_URL"]
		if !ok {
			continue
		}
		u, err := url.Parse(peer)
		if err != nil || u.Scheme != "https" {
			t.Fatalf("%s: %v", peer, err)
		}
		_, domain, _ := strings.Cut(u.Hostname(), ".")
		if names := made[w.template.Spec.Volumes[volume].Secret.SecretName].Spec.DNSNames; !slices.Contains(names, "*."+domain) {
			t.Errorf("nodes are called at %s and have %q in their certificate", peer, names)
		}
	}
}
