package box

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"signet.internal/appliance/handover"
	"signet.internal/appliance/keys"
	"signet.internal/image/format"
	"signet.internal/provision"
	"signet.internal/tpm"
)

const (
	tpmNode = "/dev/tpmrm0"
	runDir  = "/run/signet" // sockets; the directory is root's, each socket's mode says who may use it

	tpmWait  = 5 * time.Second  // for the TPM's driver
	diskWait = 20 * time.Second // for slow disks and controllers
)

// opened is what a boot has found and opened before leave-initrd.
type opened struct {
	device     *tpm.Device // nil: this machine has none; closed after leave-initrd
	tpm        handover.TPM
	release    format.Release
	site       *provision.Site
	disk       *disk
	vault      *keys.Vault // once its secrets are handed over it only writes KEYS
	storage    *os.File    // KEYS, open as long as vault is
	firstBoot  bool        // the service never became ready in an earlier boot
	holder     *holder
	secureBoot string
	pcr11      []byte // after leave-initrd
	conditions []handover.Condition
}

// boot runs a boot from the first mount to the running service. It returns an error where the box
// must not go on, and nil once the service is supervised.
func (m *Machine) boot() error {
	if err := m.startTerminal(); err != nil {
		return err
	}
	go m.watchPower(m.powerOff)
	b := &opened{}
	openErr := guard(func() error { return m.openBox(b) })
	leaveErr := guard(func() error { return m.leaveInitrd(b) })
	if err := errors.Join(openErr, leaveErr); err != nil {
		if b.vault != nil {
			b.closeVault() // nobody needs the secrets any more, and the box may stand like this for days
		}
		return err
	}
	return m.serve(b)
}

// startTerminal mounts what the screen needs and shows the first page.
func (m *Machine) startTerminal() error {
	// The archive's own root directory may be closed to all but root, and everything the children
	// execute and read is below it.
	failed := os.Chmod("/", 0o755)
	for _, k := range earlyMounts {
		if err := mountKernel(k); err != nil && k.target != "/sys/kernel/security" {
			failed = errors.Join(failed, err)
		}
	}
	m.openScreen()
	return failed
}

// openBox does everything that must happen before leave-initrd: PCR 11 says enter-initrd, so the
// root secret can be unsealed, and nothing from the network has been seen.
func (m *Machine) openBox(b *opened) error {
	releaseErr := m.readRelease(b)
	if err := m.enterInitrd(b); err != nil {
		return err
	}
	if releaseErr != nil {
		return releaseErr
	}
	if err := m.readSite(b); err != nil {
		return err
	}
	if err := m.checkCmdline(); err != nil {
		return err
	}
	if err := m.checkTPM(b); err != nil {
		return err
	}
	b.conditions = append(b.conditions, checkClock(time.Now(), b.release.BuildTime)...)
	if err := os.Mkdir(m.path(runDir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making %s: %w", runDir, err)
	}
	m.say("looking for the box's disk")
	var err error
	if b.disk, err = m.waitDisk(); err != nil {
		return err
	}
	if err := b.disk.repair(); err != nil {
		return err
	}
	m.say("opening keys")
	if err := m.openKeys(b); err != nil {
		return err
	}
	m.say("opening state")
	if err := m.openRecords(b); err != nil {
		return err
	}
	return m.handOver(b)
}

// enterInitrd measures that this boot's init has begun. A TPM whose driver is built in is measured
// into before any module is loaded; one whose driver is a module as soon as it can be.
func (m *Machine) enterInitrd(b *opened) error {
	_, err := os.Stat(m.path(tpmNode))
	early := err == nil
	if early {
		if err := m.measureEnter(b); err != nil {
			return err
		}
	}
	if err := m.setKernel(kernelSettings); err != nil {
		return err
	}
	for _, err := range m.loadModules() {
		if !errors.Is(err, unix.ENODEV) { // a driver without its device
			m.note("%v", err)
		}
	}
	if err := m.setKernel(noMoreModules); err != nil {
		return err
	}
	if err := mountKernel(efiMount); err != nil {
		m.note("%v", err)
	}
	b.secureBoot = m.secureBootWords()
	m.screen.Update(func(p *Page) { p.SecureBoot = b.secureBoot })
	if early {
		return nil
	}
	for deadline := time.Now().Add(tpmWait); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(m.path(tpmNode)); err == nil {
			return m.measureEnter(b)
		}
	}
	return &Problem{
		What: "this machine has no TPM 2.0 that the box can use",
		Mend: "switch the TPM on in the firmware setup (TPM, PTT, fTPM or Security Device), or fit a TPM 2.0 module",
	}
}

func (m *Machine) measureEnter(b *opened) error {
	device, err := tpm.Open(m.path(tpmNode))
	if err != nil {
		return err
	}
	b.device = device
	if err := device.ExtendPCR(format.BootPCR, format.PhaseEnterInitrd); err != nil {
		return fmt.Errorf("measuring the start of the boot: %w", err)
	}
	return nil
}

// leaveInitrd measures that keys can no longer be opened in this boot. It runs on every path; a
// machine without a TPM holds nothing that could be opened.
func (m *Machine) leaveInitrd(b *opened) error {
	if b.device == nil {
		return nil
	}
	defer b.device.Close()
	err := b.device.ExtendPCR(format.BootPCR, format.PhaseLeaveInitrd)
	if err == nil {
		b.pcr11, err = b.device.ReadPCR(format.BootPCR)
	}
	if err != nil {
		return &Problem{What: "the TPM did not take the measurement that closes the keys, so the box does not go on", Mend: "switch the box off and on; if it comes back, the TPM is failing", Err: err}
	}
	return nil
}

// readRelease reads which image this is, for the screen above all.
func (m *Machine) readRelease(b *opened) error {
	data, err := os.ReadFile(m.path(format.ReleaseFile))
	if err == nil {
		err = json.Unmarshal(data, &b.release)
	}
	if err != nil {
		return &Problem{What: "the image does not say which release it is", Mend: "bake the image again and flash it", Err: err}
	}
	if b.release.Debug {
		m.log.forward(func(line string) { m.screen.serialLine(quoted(line)) })
	} else {
		quietKernel(m.path("/proc/sys/kernel/printk"))
	}
	m.screen.Update(func(p *Page) {
		p.State = "starting"
		p.Name, p.Version, p.Epoch, p.Debug = b.release.Name, b.release.Version, b.release.Epoch, b.release.Debug
	})
	return nil
}

// readSite reads the measured site. It passed all checks when it was baked; a certificate in it that has
// expired since is for the service to say.
func (m *Machine) readSite(b *opened) (err error) {
	if b.site, err = provision.LoadBaked(os.DirFS(m.path(format.SiteDir))); err != nil {
		return &Problem{What: "the site in this image cannot be used", Mend: "run `signet check` on the site, bake it again and flash the image", Err: err}
	}
	return nil
}

// quietKernel keeps kernel messages off the screen; failing to is no reason to stop.
func quietKernel(path string) {
	os.WriteFile(path, []byte("1"), 0o644)
}

// checkTPM refuses a TPM that cannot hold keys, and says all that is wrong with it at once. What keeps
// it only from holding new ones stays on the screen; provisioning looks again and refuses it.
func (m *Machine) checkTPM(b *opened) error {
	info, err := b.device.Info()
	if err != nil {
		return fmt.Errorf("asking the TPM about itself: %w", err)
	}
	b.tpm = handover.TPM{Manufacturer: info.Manufacturer, Firmware: info.Firmware, LockoutCounter: info.LockoutCounter}
	conditions, err := weighFindings(b.device.Preflight())
	b.conditions = append(b.conditions, conditions...)
	return err
}

// weighFindings tells what stops every boot from what a box that has its keys can live with.
func weighFindings(findings []tpm.Finding) (conditions []handover.Condition, err error) {
	var stop *Problem
	for _, f := range findings {
		switch {
		case f.NewKeysOnly:
			conditions = append(conditions, shown(f.What+", which does not keep this box's keys from working", "find out who did it, and do not clear the TPM: that would destroy the keys"))
		case stop == nil:
			stop = &Problem{What: f.What, Mend: f.Mend}
		default:
			stop.Err = errors.Join(stop.Err, fmt.Errorf("also: %s (%s)", f.What, f.Mend))
		}
	}
	if stop != nil {
		return nil, stop
	}
	return conditions, nil
}

// checkClock compares the clock the kernel took from the machine with the image's age. A wrong one
// does not stop the boot: the service signs nothing before the floor and says so.
func checkClock(now, built time.Time) []handover.Condition {
	if !now.Before(built) {
		return nil
	}
	return []handover.Condition{shown(
		fmt.Sprintf("the machine's clock says %s, before this image was made; no certificate is issued", now.UTC().Format("2006-01-02 15:04 MST")),
		"set the clock in the firmware setup, in UTC, and start again; if it forgets, replace its battery",
	)}
}

// waitDisk finds the box's disk, giving its controller time.
func (m *Machine) waitDisk() (*disk, error) {
	for deadline := time.Now().Add(diskWait); ; time.Sleep(250 * time.Millisecond) {
		d, err := m.findDisk()
		if err == nil || time.Now().After(deadline) {
			return d, err
		}
	}
}

// policy is what the image brings to open the keys with.
func (m *Machine) policy(epoch uint32) (keys.Binding, error) {
	broken := func(err error) (keys.Binding, error) {
		return keys.Binding{}, &Problem{What: "the image carries no usable approval by the site's policy key", Mend: "bake the image again with the site's keys and flash it", Err: err}
	}
	data, err := os.ReadFile(m.path(format.PCRPublicKeyFile))
	if err != nil {
		return broken(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return broken(errors.New("public key is not PEM"))
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return broken(err)
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok {
		return broken(fmt.Errorf("public key is a %T", public))
	}
	if data, err = os.ReadFile(m.path(format.PCRSignatureFile)); err != nil {
		return broken(err)
	}
	var list format.PCRSignatures
	if err := json.Unmarshal(data, &list); err != nil {
		return broken(err)
	}
	binding := keys.Binding{Kind: handover.KindBox, PolicyKey: key, Epoch: epoch}
	for _, s := range list.SHA256 {
		digest, err := hex.DecodeString(s.Policy)
		if err != nil {
			return broken(err)
		}
		binding.Signatures = append(binding.Signatures, tpm.PolicySignature{Ref: s.PolicyRef, Policy: digest, Signature: s.Signature})
	}
	return binding, nil
}

// keySpecs are the site's keys as the key holder knows them.
func keySpecs(site *provision.Site) []keys.Spec {
	var specs []keys.Spec
	for _, k := range site.Keys() {
		specs = append(specs, keys.Spec(k))
	}
	return specs
}

// openKeys opens the KEYS partition, or makes it and the TPM this box's on a first boot.
func (m *Machine) openKeys(b *opened) error {
	binding, err := m.policy(b.release.Epoch)
	if err != nil {
		return err
	}
	storage, err := os.OpenFile(b.disk.partitionNode(b.disk.keys), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening KEYS: %w", err)
	}
	b.vault, err = keys.Open(b.device, storage, b.site.Name, keySpecs(b.site), binding)
	if err == nil {
		b.storage = storage
		b.firstBoot = !b.vault.Initialised()
		return nil
	}
	err = errors.Join(err, storage.Close())
	if !errors.Is(err, keys.ErrNotProvisioned) {
		return err
	}
	return m.provision(b, binding)
}

// provision is a first boot: neither the TPM nor the disk knows of this box. A power cut before
// keys.Provision has written everything leaves that so, or half made in a way it finishes itself.
func (m *Machine) provision(b *opened, binding keys.Binding) error {
	content, err := inspectState(b.disk.partitionNode(b.disk.state), m.inspectDir(), nil)
	if err != nil {
		return err
	}
	if _, err := decideState(false, false, content); err != nil {
		return err
	}
	m.say("first boot: giving the whole disk to the box")
	if err := b.disk.growState(); err != nil {
		return err
	}
	m.say("first boot: creating keys in the TPM, which may take minutes")
	storage, err := os.OpenFile(b.disk.partitionNode(b.disk.keys), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("opening KEYS: %w", err)
	}
	if b.vault, err = keys.Provision(b.device, storage, b.site.Name, keySpecs(b.site), binding); err != nil {
		return errors.Join(err, storage.Close())
	}
	b.storage, b.firstBoot = storage, true
	return nil
}

// openRecords opens STATE, formatting it where this box never had records.
func (m *Machine) openRecords(b *opened) error {
	node := b.disk.partitionNode(b.disk.state)
	content, err := inspectState(node, m.inspectDir(), checkFilesystem)
	if err != nil {
		return err
	}
	formatIt, err := decideState(true, !b.firstBoot, content)
	if err != nil {
		return err
	}
	if formatIt {
		m.say("first boot: formatting the state partition")
		if err := FormatState(node); err != nil {
			return err
		}
	}
	if err := OpenState(node, m.path(stateMount)); err != nil {
		return err
	}
	return ownRecords(m.path(stateMount))
}

// closeVault wipes boxinit's copy of the secrets, and ends writing to KEYS. A second call does nothing.
func (b *opened) closeVault() {
	b.vault.Close()
	b.storage.Close()
}

func (m *Machine) inspectDir() string { return m.path(filepath.Join(runDir, "inspect")) }

// handOver starts the key holder with what was opened, and forgets it here, but for what it takes to
// write KEYS: that the service became ready, and the keys and secrets the holder makes later.
func (m *Machine) handOver(b *opened) error {
	secrets, err := b.vault.Handover()
	if err != nil {
		return fmt.Errorf("handing over the keys: %w", err)
	}
	device, err := os.OpenFile(m.path(tpmNode), os.O_RDWR, 0)
	if err != nil {
		clear(secrets)
		return fmt.Errorf("opening the TPM for the key holder: %w", err)
	}
	defer device.Close()
	dir := m.path(filepath.Join(runDir, "keys"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		clear(secrets)
		return err
	}
	b.vault.Forget()
	b.holder, err = startHolder(holderConfig{
		box: sandbox{uid: uidHolder, lockPages: true}, socket: filepath.Join(dir, "socket"),
		device: device, log: m.log, secrets: secrets, record: b.vault.ServeRecords,
	})
	if err != nil {
		return err
	}
	b.tpm.SRKName = hex.EncodeToString(b.vault.SRKName())
	m.onStop(func() {
		b.holder.stop(5 * time.Second)
		b.closeVault()
	})
	go func() {
		<-b.holder.ended
		if !m.stopping() {
			m.halt(&Problem{
				What: "the key holder ended; its keys cannot be opened again in this boot",
				Mend: "switch the box off and on",
				Err:  b.holder.err,
			})
		}
	}()
	return nil
}
